"""What a run says: what it is about to do, how it went, and its page of samples."""

from __future__ import annotations

import os
from typing import Any

from kerora.adapters.report import TrainableParameters
from kerora.evaluation import Answer
from kerora.recipe import Recipe
from kerora.run_folder import RunFolder
from kerora.run_measure import Measurement
from kerora.run_parts import RunData


def model_lines(recipe: Recipe, parameters: TrainableParameters, dtype: str) -> list[str]:
    """The model of a run and what trains in it."""
    held = "" if recipe.model.quantize == "none" else f", held in {recipe.model.quantize}"
    start = ", from random weights" if recipe.model.weights == "random" else ""
    return [f"Model     {recipe.model.source} ({dtype}{held}{start})", *_indented(str(parameters))]


def data_lines(data: RunData, steps: int, batch_size: int, learning_rate: float) -> list[str]:
    """The rows of a run, how many steps they make, and the peak of the learning rate."""
    lines = ["Training  " + _first(str(data.batches.report()))]
    lines += _rest(str(data.batches.report()))
    if data.validation is not None:
        lines.append("Held out  " + _first(str(data.validation.report()).split(", in ")[0]))
        lines += _rest(str(data.validation.report()))
    tokens = batch_size * data.batches.sequence_length
    lines.append(
        f"Steps     {steps:,} of {batch_size} rows of {data.batches.sequence_length} tokens "
        f"({tokens:,} positions), learning rate {learning_rate:.2g}"
    )
    return lines


def _first(text: str) -> str:
    return text.splitlines()[0]


def _rest(text: str) -> list[str]:
    return [f"          {line}" for line in text.splitlines()[1:]]


def _indented(text: str) -> list[str]:
    return [f"          {line}" for line in text.splitlines()]


def figures(measurement: Measurement) -> dict[str, str]:
    """What was measured, as text by name."""
    found = {}
    if measurement.scores is not None:
        found["loss"] = f"{measurement.scores.loss:.4f}"
        found["perplexity"] = f"{measurement.scores.perplexity:,.2f}"
        found["token accuracy"] = f"{measurement.scores.token_accuracy:.1%}"
    if measurement.exact_match is not None:
        found[f"exact match of {measurement.asked} answers"] = f"{measurement.exact_match:.1%}"
    return found


def figures_table(measurements: dict[str, Measurement]) -> Any:
    """Measurements side by side, each under its name, as a `rich` table."""
    from rich import box
    from rich.table import Table

    table = Table("on held-out rows", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in measurements:
        table.add_column(name, justify="right")
    columns = [figures(measurement) for measurement in measurements.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def places(folder: RunFolder) -> list[str]:
    """Where the files of a finished run lie."""
    trained = folder.adapter if folder.adapter.exists() else folder.model
    files = {"adapter" if trained == folder.adapter else "model": trained, "plot": folder.plot}
    files |= {"samples": folder.samples, "report": folder.report}
    return [f"{name:<10}{path}" for name, path in files.items()]


def samples_page(title: str, before: list[Answer], after: list[Answer]) -> str:
    """`samples.md`: each prompt with the answers before and after, and the expected one."""
    parts = [f"# Samples of {title}\n\nGreedy answers to the same prompts, before and after.\n"]
    for number, (first, last) in enumerate(zip(before, after, strict=True), start=1):
        parts.append(f"\n## {number}\n\nPrompt:\n\n{_block(first.prompt)}")
        if first.expected is not None:
            parts.append(f"\nExpected:\n\n{_block(first.expected)}")
        parts.append(f"\nBefore:\n\n{_block(first.answer)}\nAfter:\n\n{_block(last.answer)}")
    return "".join(parts)


def _block(text: str) -> str:
    """A fenced block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip(os.linesep)}\n{fence}\n"
