"""KerasHub's tokenizers for Hugging Face folders that its own converters cannot read.

| family | what the converter wants | what folders have |
|---|---|---|
| Llama | special tokens as texts | `AddedToken` objects; no start token |
| Qwen 2 | an end token of Qwen's name | DeepSeek's name, in its distilled models |
| GPT-2 | vocab.json and merges.txt | tokenizer.json alone, of transformers 5 |
| Gemma, Mistral, Mixtral | tokenizer.model | tokenizer.json alone, of transformers 5 |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras_hub

from kerora.json_file import read_json_object, shown
from kerora.models.converters import preset_file, sentencepiece_proto
from kerora.models.errors import ModelSourceError, told_of_source

_BYTE_PAIR = ("llama", "qwen2", "qwen2_moe", "gpt2")
_SENTENCEPIECE = ("gemma", "gemma2", "gemma3n", "mistral", "mixtral")
_RESERVED = "<|reserved_special_token_"


def tokenizer_maker(source: str, family: str) -> Callable[[Any], Any] | None:
    """What makes a tokenizer of a class of KerasHub's from a folder's `tokenizer.json`.

    Args:
        source: A Hugging Face folder or handle.
        family: Its `model_type`.

    Returns:
        None where KerasHub's own converter is to read the folder.
    """
    path = preset_file(source, "tokenizer.json")
    if path is None:
        return None
    if family in _BYTE_PAIR:
        return functools.partial(_byte_pair, source, path)
    if family in _SENTENCEPIECE and preset_file(source, "tokenizer.model") is None:
        return functools.partial(_sentencepiece, path)
    return None


def tokenizer_config(source: str, file: str = "tokenizer_config.json") -> dict[str, Any]:
    """A folder's tokenizer_config.json; empty where it has none."""
    path = preset_file(source, file)
    return {} if path is None else read_json_object(path, ModelSourceError)


def special_token(source: str, name: str, file: str = "tokenizer_config.json") -> str | None:
    """The text of a special token, such as `"bos_token"`, by a folder's tokenizer_config.json."""
    token = tokenizer_config(source, file).get(name)
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and not isinstance(token, str):
        raise ModelSourceError(
            f"In the {file} of '{source}' `{name}` must be a text. Received: {shown(token)}"
        )
    return token


def _byte_pair(source: str, path: str, kind: Any) -> Any:
    with told_of_source(f"'{path}' cannot be read as a byte-pair tokenizer"):
        fields = read_json_object(path, ModelSourceError)
        added = {entry["content"]: entry["id"] for entry in fields["added_tokens"]}
        # KerasHub's converters leave these out of a preset.
        added = {token: index for token, index in added.items() if not token.startswith(_RESERVED)}
        vocabulary = fields["model"]["vocab"] | added
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in fields["model"]["merges"]
        ]
        bos, eos = (special_token(source, f"{name}_token") for name in ("bos", "eos"))
        if issubclass(kind, keras_hub.tokenizers.GPT2Tokenizer):
            return kind(vocabulary=vocabulary, merges=merges)
        if not issubclass(kind, keras_hub.tokenizers.Llama3Tokenizer):
            return _qwen(kind, vocabulary, merges, list(added), bos, eos)
        if eos is None:
            raise ModelSourceError(
                f"The tokenizer_config.json of '{source}' names no end token (`eos_token`). Name "
                "one there, or pass `preprocessor=None` to load the model alone."
            )
        return _llama(kind, vocabulary, merges, set(added), bos, eos)


def _llama(
    kind: Any,
    vocabulary: dict[str, int],
    merges: list[str],
    added: set[str],
    bos: str | None,
    eos: str,
) -> Any:
    tokenizer = kind(
        vocabulary=vocabulary,
        merges=merges,
        bos_token=bos or eos,
        eos_token=eos,
        misc_special_tokens=added,
    )
    if bos is None:
        tokenizer.start_token = tokenizer.start_token_id = None
        # Private: of the tokens in it each must have a number.
        tokenizer._special_token_attrs.remove("start_token")
    return tokenizer


def _qwen(
    kind: Any,
    vocabulary: dict[str, int],
    merges: list[str],
    added: list[str],
    bos: str | None,
    eos: str | None,
) -> Any:
    name = kind().end_token
    if name in vocabulary or eos not in vocabulary:
        return kind(vocabulary=vocabulary, merges=merges, unsplittable_tokens=added)
    # Under KerasHub's name a preset has the folder's end token when it is loaded again.
    vocabulary[name] = vocabulary.pop(eos)
    added = [name if token == eos else token for token in added]
    tokenizer = kind(vocabulary=vocabulary, merges=merges, unsplittable_tokens=added)
    # Nor has it to do without a start token, as Qwen's own.
    if bos in vocabulary:
        tokenizer.start_token, tokenizer.start_token_id = bos, vocabulary[bos]
    return tokenizer


def _sentencepiece(path: str, kind: Any) -> Any:
    with told_of_source(f"'{path}' cannot be read as a SentencePiece tokenizer"):
        fields = read_json_object(path, ModelSourceError)
        return kind(proto=sentencepiece_proto(fields))
