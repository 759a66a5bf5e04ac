"""Held-out loss of kerora and PEFT after the same rows, each at its best learning rate, over seeds.

    python -m benchmarks.heldout --model smollm2-135m-instruct --data dolly_5k.jsonl

Every contestant tries each learning rate on one seed and keeps the one with the lowest loss on rows
for choosing; the loss that is printed is that of other rows. Nothing is timed, so that it can run
beside other work.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from benchmarks.finetune import Worker, command_of
from benchmarks.rows import read_rows
from benchmarks.worker import Rows, Settings


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows to learn, to choose the learning rate by, and to report."""

    train: Rows
    choosing: Rows
    heldout: Rows


def losses(label: str, settings: Settings, split: Split) -> tuple[float, float]:
    """Train in a process of its own; the loss on the rows for choosing, and on those to report."""
    worker = Worker(label, label.split()[0].lower(), settings, split.train)
    found = [
        worker.ask(do="evaluate", rows=part)["loss"] for part in (split.choosing, split.heldout)
    ]
    worker.process.kill()
    return found[0], found[1]


def measure(label: str, common: Settings, rates: list[float], seeds: int, split: Split) -> Any:
    """The best learning rate, and the loss of each seed at it."""
    by_rate = {}
    for rate in rates:
        by_rate[rate] = losses(label, dataclasses.replace(common, learning_rate=rate), split)
        print(f"{label}, {rate:g} an example: {by_rate[rate][0]:.4f}", flush=True)
    best = min(by_rate, key=lambda rate: by_rate[rate][0])
    found = [by_rate[best][1]]
    for seed in range(1, seeds):
        settings = dataclasses.replace(common, learning_rate=best, seed=seed)
        found.append(losses(label, settings, split)[1])
    print(f"{label}, held out: {', '.join(f'{loss:.4f}' for loss in found)}", flush=True)
    return {"learning_rate": best, "heldout_losses": found}


def table(results: dict[str, Any]) -> str:
    lines = ["| | learning rate an example | held-out loss, mean (min to max) |", "|---|---|---|"]
    for label, result in results.items():
        found = result["heldout_losses"]
        mean = sum(found) / len(found)
        lines.append(
            f"| {label} | {result['learning_rate']:g} "
            f"| {mean:.3f} ({min(found):.3f} to {max(found):.3f}) |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = command_of(__doc__)
    parser.add_argument("--rows", type=int, default=192, help="rows to train on")
    parser.add_argument("--heldout", type=int, default=64, help="rows to choose by, and to report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rates",
        type=lambda text: [float(part) for part in text.split(",")],
        default=[2e-4, 4e-4, 8e-4],
        help="learning rates for each example of a batch",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    size = arguments.heldout
    rows = read_rows(arguments.data, arguments.rows + 2 * size)
    split = Split(rows[2 * size :], rows[:size], rows[size : 2 * size])
    common = Settings(model=arguments.model)
    sizes = {"kerora jax": None, "PEFT batch 4": 4}
    results = {
        label: measure(
            label,
            dataclasses.replace(common, batch_size=batch_size),
            arguments.rates,
            arguments.seeds,
            split,
        )
        for label, batch_size in sizes.items()
    }
    print(table(results))


if __name__ == "__main__":
    main()
