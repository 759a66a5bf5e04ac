"""Fine-tuning speed and memory of kerora, KerasHub's own LoRA and PEFT, interleaved in one run.

    python -m benchmarks.finetune --model smollm2-135m-instruct --data dolly_5k.jsonl

Every contestant runs in a process of its own and trains on the same rows, slice after slice, taking
turns, so that a machine whose speed drifts drifts for all. Rates count real tokens. KerasHub's way
is given the first rows of each slice only: every padded row takes it as long, so its rate is its
rows a second times the real tokens of a mean row of the slice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import read_rows
from benchmarks.worker import Rows, Settings


class Worker:
    """A contestant's process."""

    def __init__(self, label: str, contestant: str, settings: Settings, warm_up: Rows) -> None:
        self.label, self.settings = label, settings
        command = [sys.executable, "-m", "benchmarks.worker", contestant]
        name = label.replace(" ", "-")
        handle, self.log = tempfile.mkstemp(prefix=f"benchmark-{name}-")
        self.process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
        )
        self.about = self.ask(rows=warm_up)
        self.rates: list[float] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended; its output is in {self.log}")
        return json.loads(line)


def contestants(arguments: argparse.Namespace) -> dict[str, tuple[str, Settings]]:
    """The asked-for contestants by label."""
    common = Settings(
        model=arguments.model,
        rank=arguments.rank,
        all_linear=arguments.targets == "all-linear",
        sequence_length=arguments.sequence_length,
        train_on_response=arguments.train_on == "response",
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    chosen = {}
    for backend in arguments.backends.split(","):
        settings = dataclasses.replace(
            common, backend=backend, batch_size=arguments.kerora_batch_size
        )
        chosen[f"kerora {backend}"] = ("kerora", settings)
    if "keras_hub" in arguments.rivals:
        # As its guide has it; on a CPU bfloat16 makes it slower.
        own = dataclasses.replace(common, batch_size=1, dtype="float32")
        chosen["KerasHub jax"] = ("keras_hub", own)
    if "peft4" in arguments.rivals:
        chosen["PEFT batch 4"] = ("peft", dataclasses.replace(common, batch_size=4))
    if "peft" in arguments.rivals.split(","):
        chosen["PEFT best batch"] = ("peft", common)
    if "peft_compiled" in arguments.rivals:
        chosen["PEFT compiled"] = ("peft", dataclasses.replace(common, compiled=True))
    return chosen


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return everything as plain values."""
    slices = arguments.repeats + 1
    rows = read_rows(arguments.data, arguments.rows * slices + arguments.heldout)
    heldout, rows = rows[: arguments.heldout], rows[arguments.heldout :]
    arguments.dtype, peak = _dtype_and_peak(arguments.dtype)
    workers = []
    for label, (name, settings) in contestants(arguments).items():
        warm_up = _share(rows[: arguments.rows], name, arguments)
        workers.append((name, Worker(label, name, settings, warm_up)))
        print(f"{label}: first step after {workers[-1][1].about['first_step_s']:.1f} s", flush=True)
    last: dict[str, dict[str, Any]] = {}
    for repeat in range(1, slices):
        part = rows[repeat * arguments.rows : (repeat + 1) * arguments.rows]
        tokens = 0
        for name, worker in workers:
            share = _share(part, name, arguments)
            answer = worker.ask(do="train", rows=share)
            tokens = tokens or answer["tokens"]
            worker.rates.append(tokens * len(share) / len(part) / answer["seconds"])
            last[worker.label] = answer
            print(
                f"{repeat}/{arguments.repeats} {worker.label}: {worker.rates[-1]:.1f} tokens/s",
                flush=True,
            )
    results = {}
    for name, worker in workers:
        loss = worker.ask(do="evaluate", rows=heldout)["loss"] if name != "keras_hub" else None
        memory = {key: last[worker.label][key] for key in last[worker.label] if key.endswith("_gb")}
        results[worker.label] = {
            **worker.about,
            **memory,
            "dtype": worker.settings.dtype,
            "rates": worker.rates,
            "heldout_loss": loss,
            "tokens_per_second": statistics.median(worker.rates),
        }
        worker.process.kill()
    return {"peak_flops": peak, "arguments": vars(arguments), "results": results}


def _dtype_and_peak(dtype: str | None) -> tuple[str, float]:
    chosen = [] if dtype is None else [dtype]
    command = [sys.executable, "-m", "benchmarks.peak", *chosen]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, flops = answer.split()[-2:]
    return name, float(flops)


def _share(rows: Rows, name: str, arguments: argparse.Namespace) -> Rows:
    return rows[: arguments.slow_rows] if name == "keras_hub" else rows


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, ratios to the first contestant."""
    results = report["results"]
    first = next(iter(results.values()))
    body, head = first["parameters"] - first["head_parameters"], first["head_parameters"]
    share = first["supervised_share"]
    lines = [
        "| | real tokens/s (min to max) | kerora is | of matrix peak | peak memory, GB "
        "| first step, s | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, r in results.items():
        rate = r["tokens_per_second"]
        of_peak = rate * 4 * (body + share * head) / report["peak_flops"]
        memory = r.get("device_gb") or r["resident_gb"]
        loss = "" if r["heldout_loss"] is None else f"{r['heldout_loss']:.3f}"
        row = (
            f"{label} (batch {r['batch_size']}, {r['dtype']})",
            f"{rate:.1f} ({min(r['rates']):.1f} to {max(r['rates']):.1f})",
            f"{first['tokens_per_second'] / rate:.2f}x",
            f"{of_peak:.0%}",
            f"{memory:.2f}",
            f"{r['first_step_s']:.0f}",
            loss,
        )
        lines.append(f"| {' | '.join(row)} |")
    lines.append(f"\nMatrix peak measured in this run: {report['peak_flops'] / 1e9:.0f} GFLOP/s.")
    return "\n".join(lines)


def command_of(description: str | None) -> argparse.ArgumentParser:
    """A command that is given a model and data."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, help="a .jsonl of instruction and response")
    return parser


def parse() -> argparse.Namespace:
    parser = command_of(__doc__)
    parser.add_argument("--backends", default="jax", help="of kerora: jax,torch,tensorflow")
    parser.add_argument(
        "--rivals",
        default="keras_hub,peft4,peft",
        help="of keras_hub, peft4, peft (its best batch size), peft_compiled",
    )
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--targets", choices=["query-value", "all-linear"], default="query-value")
    parser.add_argument("--train-on", choices=["all", "response"], default="all")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--kerora-batch-size", type=int, help="packed rows in kerora's batch")
    parser.add_argument(
        "--dtype",
        help="of kerora's and PEFT's base (default: what the machine multiplies fastest); "
        "KerasHub's is float32",
    )
    parser.add_argument("--rows", type=int, default=96, help="rows in a slice")
    parser.add_argument("--slow-rows", type=int, default=8, help="rows of a slice for KerasHub")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--heldout", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep everything measured in this file")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    report = run(arguments)
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2, default=str))


if __name__ == "__main__":
    main()
