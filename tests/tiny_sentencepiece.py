"""A small SentencePiece model, trained on the spot."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

TEXTS = [
    "It's 2024:\n\n  1,234.5 naïve cafés —\t東京\r\nλx → 🙂 you'LL  \n see_me",
    "Once upon a time there was a cat. It sat on 3 mats, and ate 12345 mice.",
    " leading, trailing ",
    "",
]
CORPUS = [
    *TEXTS,
    "the cat sat on the mat and the dog sat on the log",
    "naïve café 東京 2024 2025",
    "ना ना नि नि",
] * 5
# What the special tokens of a Gemma are, where those of a Llama are the trainer's default.
GEMMA: dict[str, Any] = {
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "bos_piece": "<bos>",
    "eos_piece": "<eos>",
}


def trained_sentencepiece(marks: Iterable[str] = (), **options: Any) -> Any:
    """A `SentencePieceProcessor` of 400 pieces, trained as those of Llama and Gemma are.

    Args:
        marks: Texts that are one piece each.
        **options: Of the trainer, such as `GEMMA`.
    """
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.98,
        user_defined_symbols=list(marks),
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
