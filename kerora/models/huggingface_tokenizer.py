"""The byte-pair tokenizer of a Hugging Face folder, word for word.

KerasHub's converters take vocabulary and merges from `tokenizer.json` and split text into words by
Llama 3's pattern, whatever the folder says. Two line breaks in a text for SmolLM2 or GPT-2 then
become one token that the model was never shown: SmolLM2's loss on plain instructions is 0.24 higher
for it.
"""

from __future__ import annotations

from typing import Any

import keras_hub
import tokenizers

from kerora.json_file import read_json_object
from kerora.models.converters import preset_file
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.two_file_tokenizer import two_file_tokenizer

_KERAS_HUB_READS = ("tokenizer.model", "tekken.json")


def mend_tokenizer(tokenizer: Any, source: str, name: str = "tokenizer.json") -> None:
    """Have a KerasHub tokenizer give the ids that the folder's own `tokenizer.json` gives, or where
    it has none, its `vocab.json` and `merges.txt`.

    Start and end tokens stay the preprocessor's. A SentencePiece tokenizer is left as it is. Inside
    `tf.data`, where KerasHub would split words in its own way, the tokenizer refuses to work.

    Args:
        tokenizer: A KerasHub tokenizer that was converted from `source`.
        source: A Hugging Face folder or handle; or a preset's.
        name: Where the file lies in it. Where there are none, nothing is changed.

    Raises:
        ModelSourceError: If the file cannot be read.
    """
    if getattr(tokenizer, "_tokenizer", None) is None:
        return
    path = preset_file(source, name)
    if path is not None:
        with told_of_source(f"'{path}' cannot be read as a tokenizer"):
            own = tokenizers.Tokenizer.from_file(path)
    elif name == "tokenizer.json" and (found := two_file_tokenizer(source)) is not None:
        own = found
    else:
        return
    own.post_processor = tokenizers.processors.Sequence([])
    own.no_truncation()
    own.no_padding()
    tokenizer._tokenizer = own
    tokenizer.cache = None  # KerasHub makes its tables for TensorFlow when there is none
    tokenizer._set_vocabulary_and_merges_tf = _refuse_tensorflow
    # In KerasHub's vocabulary it may have the name that KerasHub asks for.
    tokenizer.end_token = own.id_to_token(tokenizer.end_token_id) or tokenizer.end_token


def is_mended(tokenizer: Any) -> bool:
    """Whether a tokenizer follows a `tokenizer.json`, by `mend_tokenizer`."""
    return getattr(tokenizer, "_set_vocabulary_and_merges_tf", None) is _refuse_tensorflow


def mistral_preprocessor(source: str) -> keras_hub.models.MistralCausalLMPreprocessor | None:
    """The preprocessor of a Mistral with a byte-level tokenizer (Tekken), from tokenizer.json.

    KerasHub has that tokenizer, and fills it by way of a package of Mistral's from `tekken.json`.

    Args:
        source: A Hugging Face folder or handle of a Mistral.

    Returns:
        None where `tokenizer.json` is missing or holds the pieces of SentencePiece, or where
        `tokenizer.model` or `tekken.json` is there.

    Raises:
        ModelSourceError: If `tokenizer.json` cannot be read, or lacks tokens that KerasHub needs.
    """
    path = preset_file(source, "tokenizer.json")
    if path is None or any(preset_file(source, name) for name in _KERAS_HUB_READS):
        return None
    with told_of_source(f"'{path}' cannot be read as a tokenizer of Mistral's"):
        fields = read_json_object(path, ModelSourceError)
        if fields["model"].get("byte_fallback"):
            return None
        merges = fields["model"]["merges"]
        tokenizer = keras_hub.tokenizers.MistralTekkenTokenizer(
            vocabulary=tokenizers.Tokenizer.from_file(path).get_vocab(with_added_tokens=True),
            merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
            split_pattern=_pattern(fields["pre_tokenizer"]),
        )
        return keras_hub.models.MistralCausalLMPreprocessor(tokenizer)


def _pattern(step: dict[str, Any]) -> str:
    for part in step.get("pretokenizers", [step]):
        if part["type"] == "Split":
            return part["pattern"]["Regex"]
    raise ModelSourceError("it splits text into words by no pattern")


def _refuse_tensorflow(*_: Any) -> None:
    raise ModelSourceError(
        "This tokenizer follows a tokenizer.json of Hugging Face's, which cannot run "
        "inside tf.data. Give `fit` the texts or rows themselves, or tokenise them beforehand."
    )
