"""The protocol between the command and a contestant's process: one JSON object a line.

The command starts `python -m benchmarks.worker CONTESTANT SETTINGS`, waits for `ready`, and sends
`train` or `evaluate` with rows; the worker answers with what it did and how long it took. All
workers wait while one works, so that they can take turns within one run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
from typing import Any, Protocol

Rows = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a contestant is asked to do.

    Attributes:
        model: A Hugging Face folder.
        backend: The Keras backend.
        rank: LoRA rank; alpha is the same.
        all_linear: Adapters on every linear layer rather than query and value alone.
        sequence_length: Tokens in a row.
        train_on_response: Loss on the response alone.
        dtype: Type of the base.
        batch_size: Rows in a batch; None lets the contestant find its best.
        learning_rate: Of AdamW, for each example of a batch: the rate grows with the batch, so that
            all get as far on the same rows (Goyal et al., 2017, https://arxiv.org/abs/1706.02677).
        seed: Of the adapters.
        compiled: Whether PyTorch compiles the model.
    """

    model: str
    backend: str = "jax"
    rank: int = 4
    all_linear: bool = False
    sequence_length: int = 512
    train_on_response: bool = False
    dtype: str = "float32"
    batch_size: int | None = None
    learning_rate: float = 1e-4
    seed: int = 0
    compiled: bool = False


class Contestant(Protocol):
    """One way to fine-tune."""

    def train(self, rows: Rows) -> int:
        """Goes through the rows once and returns their number of real tokens."""

    def evaluate(self, rows: Rows) -> float:
        """The mean loss of a supervised token."""

    def describe(self) -> dict[str, Any]:
        """Its settings and sizes, for the report."""


def peak_memory() -> dict[str, float]:
    """Peak resident memory, and device memory where there is a device, in GB."""
    memory = {"resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats() or {}
        if stats.get("peak_bytes_in_use"):
            memory["device_gb"] = stats["peak_bytes_in_use"] / 1e9
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        memory["device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return memory


def main() -> None:
    # Whatever the libraries print must not get between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    started = time.time()
    name, settings = sys.argv[1], Settings(**json.loads(sys.argv[2]))
    os.environ["KERAS_BACKEND"] = settings.backend
    warm_up = json.loads(sys.stdin.readline())["rows"]
    contestant: Contestant = importlib.import_module(f"benchmarks.contestants.{name}").make(
        settings
    )
    loaded = time.time()
    contestant.train(warm_up[:1])
    first_step = time.time()
    contestant.train(warm_up)
    ready = {
        "load_s": loaded - started,
        "first_step_s": first_step - started,
        **contestant.describe(),
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        if request["do"] == "train":
            answer = {"tokens": contestant.train(request["rows"])}
        else:
            answer = {"loss": contestant.evaluate(request["rows"])}
        answer["seconds"] = time.perf_counter() - began
        print(json.dumps({**answer, **peak_memory()}), file=answers)


if __name__ == "__main__":
    main()
