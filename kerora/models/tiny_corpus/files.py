"""The files of the bundled model: its text, its instruction set and its preset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from kerora.models.tiny_corpus.instructions import instructions
from kerora.models.tiny_corpus.prose import documents
from kerora.models.tiny_corpus.tokenizer import train_tokenizer
from kerora.models.tiny_corpus.world import make_world

DOCUMENTS = 48_000
SHAPE = {
    "num_layers": 4,
    "num_query_heads": 4,
    "num_key_value_heads": 1,
    "hidden_dim": 256,
    "intermediate_dim": 1024,
    "head_dim": 64,
}


def write_pretraining_text(path: Path) -> None:
    """Write the corpus as JSON lines, `{"text": ...}` each; every time the same bytes."""
    _write_lines(path, ({"text": text} for text in documents(make_world(), DOCUMENTS)))


def write_instructions(folder: Path) -> None:
    """Write `train.jsonl` and `heldout.jsonl`, `{"instruction": ..., "response": ...}` each."""
    train, heldout = instructions(make_world())
    _write_lines(folder / "train.jsonl", train)
    _write_lines(folder / "heldout.jsonl", heldout)


def write_untrained_preset(folder: Path) -> None:
    """Write a KerasHub preset of the bundled model's shape, with its tokenizer, not yet trained."""
    import keras_hub

    tokenizer = keras_hub.models.GemmaTokenizer(proto=tokenizer_model())
    keras_hub.models.GemmaCausalLM(
        backbone=keras_hub.models.GemmaBackbone(
            vocabulary_size=tokenizer.vocabulary_size(), dtype="float16", **SHAPE
        ),
        preprocessor=keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=256),
    ).save_to_preset(str(folder))


def write_trained_preset(trained: Path, folder: Path) -> None:
    """Copy a preset with its weights in float16, which halves the size of the file.

    KerasHub casts the weights to the Keras default (float32) when it loads them.
    """
    import keras_hub

    model = keras_hub.models.CausalLM.from_preset(str(trained), dtype="float16")
    model.save_to_preset(str(folder))


def tokenizer_model() -> bytes:
    """The SentencePiece model of the bundled tokenizer, trained on the corpus and instructions."""
    world = make_world()
    rows, _ = instructions(world)
    asked = [f"Instruction:\n{row['instruction']}\n\nResponse:\n{row['response']}" for row in rows]
    return train_tokenizer([*documents(world, DOCUMENTS // 4), *asked])


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
