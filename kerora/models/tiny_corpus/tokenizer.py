"""The SentencePiece tokenizer of the bundled model, trained on the corpus."""

from __future__ import annotations

import io
from collections.abc import Iterable

VOCABULARY_SIZE = 1536
USER_SYMBOLS = ("<start_of_turn>", "<end_of_turn>", "\n", "\n\n")


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """Train a tokenizer of Gemma's kind: byte pair encoding, no normalisation, bytes as fallback.

    Nothing of a text is changed and no byte is unknown, so that decoding gives back what was
    encoded. As in Gemma, pad, eos, bos and unk are tokens 0 to 3, digits stand alone, a space
    belongs to the word that follows it, and the marks of a chat turn are tokens of their own.

    Args:
        texts: what to train on.

    Returns:
        The SentencePiece model file; the same texts give the same bytes.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=list(USER_SYMBOLS),
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
