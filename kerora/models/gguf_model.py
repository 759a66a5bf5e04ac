"""A GGUF file with a model, presented as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import huggingface_config
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_tensors import GGUFTensors
from kerora.models.gguf_tokenizer import read_vocabulary, write_tokenizer
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE
from kerora.models.named_templates import PLAIN, WITH_TOOLS, one_template


def is_gguf(name: str) -> bool:
    """Whether a source is the path of a GGUF file."""
    return name.endswith(".gguf") and "://" not in name


@contextlib.contextmanager
def as_huggingface_folder(
    path: str | os.PathLike[str], *, with_tokenizer: bool
) -> Iterator[tuple[str, GGUFTensors]]:
    """A temporary Hugging Face folder without weights, and the weights beside it.

    It holds the configuration, the tokenizer and the chat template, all from one reading.

    Args:
        path: A GGUF file.
        with_tokenizer: Whether the folder is to hold the tokenizer.

    Yields:
        The folder, and the tensors by their Hugging Face names. A `ModelSourceError` about the
        folder comes out as one about the file.

    Raises:
        ModelSourceError: If the file is damaged, or holds something that is not read.
    """
    file = GGUFFile(path)
    config = huggingface_config(file)
    tensors = GGUFTensors(file, config)
    with tempfile.TemporaryDirectory(prefix="kerora-gguf-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if with_tokenizer:
            write_tokenizer(
                read_vocabulary(file, config["vocab_size"]), config["model_type"], folder
            )
        if (template := _chat_template(file)) is not None:
            (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
        try:
            yield name, tensors
        except ModelSourceError as error:
            raise ModelSourceError(str(error).replace(name, str(file.path))) from error


def gguf_chat_template(path: str | os.PathLike[str]) -> str | None:
    """The Jinja chat template of a GGUF file, if it has one.

    Raises:
        ModelSourceError: If the file is damaged.
    """
    return _chat_template(GGUFFile(path))


def _chat_template(file: GGUFFile) -> str | None:
    fields = {
        PLAIN: file.fields.get("tokenizer.chat_template"),
        WITH_TOOLS: file.fields.get(f"tokenizer.chat_template.{WITH_TOOLS}"),
    }
    return one_template({name: text for name, text in fields.items() if isinstance(text, str)})
