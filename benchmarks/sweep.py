"""How a training step's cost grows with rank, sequence length, vocabulary and depth, on JAX.

    python -m benchmarks.sweep --plot sweep.png

One thing at a time is varied on a small Gemma shape of random weights; a step always has the same
number of tokens, all real. kerora and KerasHub's own LoRA take turns in one process. Memory is the
temporaries of the compiled step, by XLA's own analysis.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is varied."""

    rank: int = 8
    sequence_length: int = 512
    vocabulary: int = 32_768
    layers: int = 4


VALUES = {
    "rank": (1, 8, 32, 128, 256),
    "sequence_length": (128, 256, 512, 1024, 2048),
    "vocabulary": (8_192, 32_768, 131_072, 262_144),
    "layers": (1, 2, 4, 8),
}
TOKENS_IN_STEP = 2048
CONTESTANTS = ("kerora", "KerasHub")


def make_model(shape: Shape, contestant: str) -> Any:
    """A compiled causal language model with adapters on query and value."""
    import keras
    import keras_hub

    import kerora

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=shape.vocabulary,
        num_layers=shape.layers,
        num_query_heads=4,
        num_key_value_heads=4,
        hidden_dim=256,
        intermediate_dim=2048,
        head_dim=64,
    )
    model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    if contestant == "kerora":
        kerora.adapt(model)
    model.backbone.enable_lora(shape.rank)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
    )
    return model


def make_batch(shape: Shape) -> tuple[Any, Any, Any]:
    """One batch of random tokens, each row one example."""
    import numpy as np

    rows = TOKENS_IN_STEP // shape.sequence_length
    tokens = np.random.default_rng(0).integers(
        1, shape.vocabulary, (rows, shape.sequence_length + 1), "int32"
    )
    x = {"token_ids": tokens[:, :-1], "padding_mask": np.ones_like(tokens[:, :-1])}
    return x, tokens[:, 1:], np.ones(x["token_ids"].shape, "float32")


def measure(shape: Shape, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step (median) and bytes of temporaries, for each contestant."""
    from benchmarks.compiled_step import compile_train_step

    batch = make_batch(shape)
    models = {contestant: make_model(shape, contestant) for contestant in CONTESTANTS}
    steps = {name: compile_train_step(model, batch) for name, model in models.items()}
    memory = {name: s.memory_analysis().temp_size_in_bytes for name, s in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    rows = len(batch[1])
    for repeat in range(repeats + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model.fit(*batch[:2], sample_weight=batch[2], batch_size=rows, verbose=0)
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {"seconds": statistics.median(seconds[name]), "temporary_bytes": memory[name]}
        for name in models
    }


def sweep(axes: list[str], repeats: int) -> list[dict[str, Any]]:
    """One record for each value of each axis."""
    records = []
    for axis in axes:
        for value in VALUES[axis]:
            shape = dataclasses.replace(Shape(), **{axis: value})
            measured = measure(shape, repeats)
            records.append({"axis": axis, "value": value, **measured})
            ours, theirs = (measured[name] for name in CONTESTANTS)
            print(
                f"{axis} {value}: {ours['seconds'] * 1e3:.0f} ms and "
                f"{ours['temporary_bytes'] / 1e9:.2f} GB, KerasHub {theirs['seconds'] * 1e3:.0f} "
                f"ms and {theirs['temporary_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| varied | value | kerora, ms | KerasHub, ms | ratio | kerora, GB | KerasHub, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        ours, theirs = (record[name] for name in CONTESTANTS)
        lines.append(
            f"| {record['axis'].replace('_', ' ')} | {record['value']:,} "
            f"| {ours['seconds'] * 1e3:.0f} | {theirs['seconds'] * 1e3:.0f} "
            f"| {theirs['seconds'] / ours['seconds']:.1f} | {ours['temporary_bytes'] / 1e9:.2f} "
            f"| {theirs['temporary_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over each axis."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(record["axis"] for record in records))
    figure = Figure(figsize=(3.2 * len(axes), 5.4), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        chosen = [record for record in records if record["axis"] == axis]
        values = [record["value"] for record in chosen]
        for row, (key, scale) in enumerate((("seconds", 1e3), ("temporary_bytes", 1e-9))):
            panel = panels[row, column]
            for name in CONTESTANTS:
                heights = [record[name][key] * scale for record in chosen]
                panel.plot(values, heights, marker="o", label=name)
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            panel.grid(alpha=0.3)
        panels[1, column].set_xlabel(axis.replace("_", " "))
    panels[0, 0].set_ylabel(f"ms for {TOKENS_IN_STEP:,} tokens")
    panels[1, 0].set_ylabel("temporaries, GB")
    panels[0, 0].legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=list(VALUES), default=list(VALUES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="draw the costs in this file")
    parser.add_argument("--json", type=Path, help="keep everything measured in this file")
    arguments = parser.parse_args()
    records = sweep(arguments.axes, arguments.repeats)
    print(table(records))
    if arguments.plot:
        plot(records, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2))


if __name__ == "__main__":
    main()
