"""`metrics.jsonl`: what happened in each step of a run."""

from __future__ import annotations

import collections
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from kerora.json_file import parse_json_object
from kerora.training.callbacks.step_callbacks import StepCallback
from kerora.training.errors import RunFolderError
from kerora.training.learning_rate import LearningRateReader

_RATE_WINDOW = 16


class MetricsLog(StepCallback):
    """Appends a line of JSON per step to a file.

    A line holds `step`, counted from 1; `loss`, that step's own; `learning_rate` of that step, null
    where the optimizer does not tell; `tokens`, padding not counted; `tokens_per_second` over the
    last 16 steps; and `seconds` since the run began, interruptions not counted. A model that is no
    task of kerora reports no tokens, and as loss Keras' mean since the epoch began.

    Args:
        path: The file. If it is there, the run goes on: see `truncate_metrics`.
        start_step: Steps done before this `fit`.

    Raises:
        RunFolderError: If the file cannot be written.

    Example:
    ```python
    model.fit(data, callbacks=[MetricsLog("run/metrics.jsonl")])
    ```
    """

    def __init__(self, path: str | os.PathLike[str], start_step: int = 0) -> None:
        super().__init__(start_step)
        self.path = Path(path)
        self._seconds_before = _last_seconds(self.path)
        self._began = time.monotonic()
        self._file: IO[str] | None = None
        self._rates: dict[int, float | None] = {}
        self._rate_reader: LearningRateReader | None = None
        self._rate_step = start_step
        self._reached: dict[int, float] = {}
        self._recent: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=_RATE_WINDOW
        )

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if hasattr(model, "report_steps"):
            model.report_steps()

    def on_train_begin(self, logs: Any = None) -> None:
        self._rate_reader = LearningRateReader(self.model.optimizer)
        self._began = time.monotonic()
        self._recent.append((self._began, 0.0))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch, logs)
        assert self._rate_reader is not None
        step = self._epoch_start + batch
        self._reached[step] = time.monotonic()
        # Within `fit` on JAX the variables are empty but where someone has brought them back.
        if getattr(self.model, "_jax_state_synced", True):
            self._rate_reader.refresh()
            self._rate_step = step
        self._rates[step + 1] = self._rate_reader.at(step - self._rate_step)

    def after_step(self, step: int, logs: dict[str, Any]) -> None:
        # Logs come late and several at once; the time is that at which the step was left.
        now = self._reached.pop(step, time.monotonic())
        tokens = logs.get("step_tokens")
        first_time = self._recent[0][0]
        self._recent.append((now, tokens or 0.0))
        counted = sum(number for _, number in list(self._recent)[1:])
        per_second = counted / max(now - first_time, 1e-9)
        rate = [self._rates.pop(earlier) for earlier in sorted(self._rates) if earlier <= step]
        self.record(
            step,
            {
                "loss": logs.get("step_loss", logs.get("loss")),
                "learning_rate": rate[-1] if rate else None,
                "tokens": None if tokens is None else int(tokens),
                "tokens_per_second": None if tokens is None else round(per_second, 1),
            },
        )

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Append a line with these values, the step and the seconds."""
        seconds = self._seconds_before + time.monotonic() - self._began
        line = json.dumps({"step": step, **values, "seconds": round(seconds, 3)})
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(line + "\n")
            self._file.flush()  # a killed process loses no line
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def flush(self) -> None:
        """Bring the lines to the disk."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_train_end(self, logs: Any = None) -> None:
        self.flush()
        self.close()


def truncate_metrics(path: str | os.PathLike[str], step: int) -> None:
    """Cut a metrics file back to the lines of the first `step` steps.

    What a run wrote after its last checkpoint is written again when it continues from there. A
    half-written line goes too. No file is no error.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if line["step"] <= step]
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json_object(line, str(path), RunFolderError)
        except RunFolderError:
            break  # the line at which the process died
        numbers = (record.get("step"), record.get("seconds"))
        if not all(isinstance(number, int | float) for number in numbers):
            break
        lines.append(record)
    return lines


def _last_seconds(path: Path) -> float:
    lines = _whole_lines(path) if path.exists() else []
    return lines[-1]["seconds"] if lines else 0.0


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{path} cannot be written: {error.strerror or error}. Free space or make the folder "
        "writable, then start the same run again to continue."
    )
