"""A model saved as a KerasHub preset: one that loads again, and gives the same answers.

KerasHub's configurations leave out what three of its classes cannot do without. A `LlamaBackbone`
does not say that its embeddings are tied; a `Llama3Tokenizer` not what its special tokens are, and
loading asks for Llama 3's own, which SmolLM2's vocabulary does not have; a `QwenTokenizer` not what
start token it was given. Nor does any preset say how text is split into words. A `tokenizer.json`
and a `tokenizer_config.json` beside the vocabulary say these two.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_hub

from kerora.models.folder_tokenizers import special_token
from kerora.models.huggingface_tokenizer import is_mended, mend_tokenizer

_TOKENIZER_FILE = "assets/tokenizer/tokenizer.json"
_TOKENIZER_CONFIG = "assets/tokenizer/tokenizer_config.json"


def complete_backbone_config(backbone: keras.Model) -> dict[str, Any]:
    """A backbone's configuration with what KerasHub's own leaves out of it."""
    config = backbone.get_config()
    if isinstance(backbone, keras_hub.models.LlamaBackbone):
        config["tie_word_embeddings"] = backbone.tie_word_embeddings
    return config


@contextlib.contextmanager
def saved_completely(task: keras_hub.models.CausalLM) -> Iterator[None]:
    """Within this context KerasHub saves a model such that it can load it again."""
    tokenizer = getattr(task.preprocessor, "tokenizer", None)
    with (
        _with_config(task.backbone, complete_backbone_config(task.backbone)),
        _with_own_marks(tokenizer),
        _with_no_start(task.preprocessor, tokenizer),
    ):
        yield


def save_word_splitting(task: keras_hub.models.CausalLM, folder: Path) -> bool:
    """Write the `tokenizer.json` that a model's tokenizer follows into the preset that holds it,
    and its start token.

    Returns:
        False where it follows none: KerasHub then tokenises as the model was shown.
    """
    tokenizer: Any = getattr(task.preprocessor, "tokenizer", None)
    if not is_mended(tokenizer):
        return False
    tokenizer._tokenizer.save(str(folder / _TOKENIZER_FILE))
    fields = {"bos_token": tokenizer.start_token}
    (folder / _TOKENIZER_CONFIG).write_text(json.dumps(fields), encoding="utf-8")
    return True


def restore_word_splitting(tokenizer: Any, source: str) -> None:
    """Have a preset's tokenizer follow what `save_word_splitting` wrote there, if it did.

    Raises:
        ModelSourceError: If a file cannot be read.
    """
    mend_tokenizer(tokenizer, source, _TOKENIZER_FILE)
    if not is_mended(tokenizer) or tokenizer.start_token is not None:
        return
    start = special_token(source, "bos_token", _TOKENIZER_CONFIG)
    index = None if start is None else tokenizer._tokenizer.token_to_id(start)
    if index is not None:
        tokenizer.start_token, tokenizer.start_token_id = start, index


@contextlib.contextmanager
def _with_own_marks(tokenizer: Any) -> Iterator[None]:
    if not isinstance(tokenizer, keras_hub.tokenizers.Llama3Tokenizer):
        yield
        return
    marks = {"eos_token": tokenizer.end_token}
    # Where there is none, KerasHub asks for one all the same.
    marks["bos_token"] = tokenizer.start_token or tokenizer.end_token
    vocabulary = tokenizer.vocabulary
    tokenizer.vocabulary = _with_asked_for(vocabulary, type(tokenizer)(**marks).special_tokens)
    try:
        with _with_config(tokenizer, tokenizer.get_config() | marks):
            yield
    finally:
        tokenizer.vocabulary = vocabulary


@contextlib.contextmanager
def _with_no_start(preprocessor: Any, tokenizer: Any) -> Iterator[None]:
    is_llama = isinstance(tokenizer, keras_hub.tokenizers.Llama3Tokenizer)
    if not is_llama or tokenizer.start_token is not None:
        yield
        return
    with _with_config(preprocessor, preprocessor.get_config() | {"add_start_token": False}):
        yield


def _with_asked_for(vocabulary: dict[str, int], tokens: list[str]) -> dict[str, int]:
    # Their ids are past those of the vocabulary, and no text gets them: they are not unsplittable.
    missing = sorted(set(tokens) - set(vocabulary))
    first = max(vocabulary.values()) + 1
    return vocabulary | {token: first + number for number, token in enumerate(missing)}


@contextlib.contextmanager
def _with_config(layer: Any, config: dict[str, Any]) -> Iterator[None]:
    layer.get_config = lambda: config
    try:
        yield
    finally:
        del layer.get_config
