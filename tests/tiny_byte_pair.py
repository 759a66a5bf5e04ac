"""The folder of a tiny model with a byte-pair tokenizer, trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.tiny_transformers import tiny_transformers

TEXTS = [
    "In 1819:\n\nfish  or rope?\n",
    "it's  2025,\t\ntwo\n\n\nlines",
    "DON'T 12 34567",
    "größer 東京",
]
_SPLITS = {
    "smollm2": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}
_MARKS = ("<pad>", "<s>", "</s>", "<|endoftext|>", "<|im_end|>")
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def byte_pair_folder(
    family: str,
    split: str,
    folder: Path,
    marks: tuple[str, ...] = _MARKS,
    special: dict[str, Any] = _SPECIAL,
    **fields: Any,
) -> Any:
    """Write a model's folder, and return its tokenizer as `transformers` has it.

    Args:
        family: A key of `tiny_transformers`.
        split: How text is cut into words: as by SmolLM2, or GPT-2.
        folder: Where to write.
        marks: The special tokens, which have the first ids.
        special: Which of them is which.
        **fields: Of the model's configuration.
    """
    import transformers

    tiny_transformers(family, folder, vocab_size=400, **fields)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(marks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20 + ["\n\n12 12 34 fish rope"] * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return fast
