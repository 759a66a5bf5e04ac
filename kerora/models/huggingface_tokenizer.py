"""The byte-pair tokenizer of a Hugging Face folder, word for word.

KerasHub's converters take vocabulary and merges from `tokenizer.json` and split text into words by
Llama 3's pattern, whatever the folder says. Two line breaks in a text for SmolLM2 or GPT-2 then
become one token that the model was never shown: SmolLM2's loss on plain instructions is 0.24 higher
for it.
"""

from __future__ import annotations

from typing import Any

import tokenizers

from kerora.models.converters import preset_file
from kerora.models.errors import ModelSourceError


def mend_tokenizer(tokenizer: Any, source: str) -> None:
    """Have a KerasHub tokenizer give the ids that the folder's own `tokenizer.json` gives.

    Start and end tokens stay the preprocessor's. A SentencePiece tokenizer is left as it is. Inside
    `tf.data`, where KerasHub would split words in its own way, the tokenizer refuses to work.

    Args:
        tokenizer: A KerasHub tokenizer that was converted from `source`.
        source: A Hugging Face folder or handle.

    Raises:
        ModelSourceError: If `tokenizer.json` cannot be read.
    """
    path = preset_file(source, "tokenizer.json")
    if path is None or getattr(tokenizer, "_tokenizer", None) is None:
        return
    try:
        own = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # The library raises bare `Exception`s.
        raise ModelSourceError(f"'{path}' cannot be read as a tokenizer: {error}") from error
    own.post_processor = tokenizers.processors.Sequence([])
    own.no_truncation()
    own.no_padding()
    tokenizer._tokenizer = own
    tokenizer.cache = None  # KerasHub makes its tables for TensorFlow when there is none
    tokenizer._set_vocabulary_and_merges_tf = _refuse_tensorflow


def _refuse_tensorflow(*_: Any) -> None:
    raise ModelSourceError(
        "This tokenizer follows the tokenizer.json of its Hugging Face folder, which cannot run "
        "inside tf.data. Give `fit` the texts or rows themselves, or tokenise them beforehand."
    )
