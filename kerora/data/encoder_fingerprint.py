"""What an encoder makes of rows, as a short name that changes when any of it does."""

import hashlib
import importlib.metadata
import importlib.resources
import json
from datetime import date
from functools import lru_cache

from kerora.data.encoding import Encoder

_LIBRARIES = ("tokenizers", "sentencepiece", "jinja2")


def encoder_fingerprint(encoder: Encoder) -> str | None:
    """A hash of all that decides what a row becomes.

    These are the tokenizer's vocabulary and rules, the chat template, every setting of the encoder,
    and the code: kerora's own (its files, so that no version number can be forgotten) and the
    libraries' versions. A chat template that writes the date changes with the day.

    Returns:
        32 hexadecimal digits; None where the tokenizer does not say what it is made of.
    """
    tables = encoder.tokenizer_tables()
    if tables is None:
        return None
    settings = encoder.settings()
    today = date.today().isoformat() if "strftime_now" in settings["chat_source"] else None
    digest = hashlib.sha256(_code())
    digest.update(json.dumps([settings, today], default=str).encode())
    digest.update(tables)
    return digest.hexdigest()[:32]


@lru_cache(maxsize=1)
def _code() -> bytes:
    versions = [_version(name) for name in _LIBRARIES]
    files = sorted(importlib.resources.files("kerora.data").iterdir(), key=lambda file: file.name)
    digests = [hashlib.sha256(f.read_bytes()).digest() for f in files if f.name.endswith(".py")]
    return b"".join([json.dumps(versions).encode(), *digests])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # not installed as a package
        return None
