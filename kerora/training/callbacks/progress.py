"""A line that shows how far a run is."""

from __future__ import annotations

import time
from typing import Any

from kerora.training.callbacks.step_callbacks import StepCallback

_PLAIN_SECONDS = 15.0
_WAITING = "the first step takes longest"


class Progress(StepCallback):
    """Shows step, loss, tokens per second and time left; now and then a line if no terminal.

    Args:
        total_steps: Steps of the whole run.
        start_step: Steps done before this `fit`.
        console: A `rich.console.Console`. Default: standard output.

    Example:
    ```python
    model.fit(data, verbose=0, callbacks=[Progress(1000)])
    ```
    """

    def __init__(self, total_steps: int, start_step: int = 0, console: Any = None) -> None:
        super().__init__(start_step)
        from rich.console import Console

        self.total_steps = total_steps
        self._console = console or Console()
        self._bar: Any = None
        self._task: Any = None

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if hasattr(model, "report_steps"):
            model.report_steps()

    def on_train_begin(self, logs: Any = None) -> None:
        self._began = self._shown_at = time.monotonic()
        self._first_step_at: float | None = None
        self._tokens = 0.0
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task(
                "Training", total=self.total_steps, completed=self.start_step, text=_WAITING
            )
            self._bar.start()
        else:
            self._console.print(f"Training, {_WAITING}")

    def between_steps(self, step: int) -> None:
        if self._first_step_at is None:  # the first step compiles; speed is that of the others
            self._first_step_at, self._first_step = time.monotonic(), step

    def after_step(self, step: int, logs: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._first_step_at is not None and step > self._first_step:
            self._tokens += logs.get("step_tokens", 0.0)
        loss = logs.get("step_loss", logs.get("loss", float("nan")))
        text = f"loss {loss:.4f}"
        elapsed = 0.0 if self._first_step_at is None else now - self._first_step_at
        if self._tokens and elapsed > 0:
            text += f"  {self._tokens / elapsed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._shown_at >= _PLAIN_SECONDS or step == self.total_steps:
            self._shown_at = now
            left = self._seconds_left(step, elapsed)
            text += f"  {_duration(left)} left" if left else ""
            self._console.print(f"step {step}/{self.total_steps}  {text}", highlight=False)

    def _seconds_left(self, step: int, elapsed: float) -> float:
        done = step - self._first_step if elapsed else 0
        return elapsed / done * (self.total_steps - step) if done else 0.0

    def close(self) -> None:
        """Leave the last state of the line on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, logs: Any = None) -> None:
        self.close()


def _bar(console: Any) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[text]}"),
        progress.TimeRemainingColumn(),
        console=console,
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
