"""The chat template that a model's files bring."""

import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

from kerora.data.errors import DataError

_GGUF_KEY = b"tokenizer.chat_template"
# Bytes of a value, by its type's number; strings (8) and arrays (9) say their own size.
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


def read_chat_template(path: str | Path) -> str | None:
    """The Jinja chat template of a Hugging Face folder or a GGUF file; None where it has none.

    Args:
        path: A folder, of which `chat_template.jinja` is read, else `chat_template` of
            `tokenizer_config.json` (of several, the one called "default"); or a `.gguf` file.

    Raises:
        DataError: The file is no GGUF file, or is cut off.

    Example:

    ```python
    model.chat_template = read_chat_template("gemma-3-270m-it-Q8_0.gguf")
    ```
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return _read_gguf(path)
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = path / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _read_gguf(path: Path) -> str | None:
    """Goes through the metadata of a file up to its template.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with open(path, "rb") as file:
        try:
            magic, version, _, count = struct.unpack("<4sIQQ", _bytes(file, 24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError("it does not start as GGUF version 2 or 3 does")
            for _ in range(count):
                key, kind = _string(file), _number(file, 4)
                if key == _GGUF_KEY and kind == _GGUF_STRING:
                    return _string(file).decode("utf-8")
                _skip(file, kind)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no readable GGUF file: {error}") from error
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _GGUF_STRING:
        _string(file)
        return
    if kind != _GGUF_ARRAY:
        _bytes(file, _size(kind))
        return
    inner, count = _number(file, 4), _number(file, 8)
    if inner in (_GGUF_STRING, _GGUF_ARRAY):
        for _ in range(count):
            _skip(file, inner)
    else:
        _bytes(file, _size(inner) * count)


def _size(kind: int) -> int:
    if kind not in _GGUF_SIZES:
        raise ValueError(f"a value of the unknown type {kind}")
    return _GGUF_SIZES[kind]


def _string(file: BinaryIO) -> bytes:
    return _bytes(file, _number(file, 8))


def _number(file: BinaryIO, size: int) -> int:
    return int.from_bytes(_bytes(file, size), "little")


def _bytes(file: BinaryIO, size: int) -> bytes:
    # A damaged length may be larger than any memory.
    left = os.fstat(file.fileno()).st_size - file.tell()
    if size > left:
        raise ValueError(f"it ends {size - left} bytes too soon")
    return file.read(size)
