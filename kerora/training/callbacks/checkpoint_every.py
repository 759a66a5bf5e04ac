"""Save checkpoints while a model trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from kerora.training.callbacks.step_callbacks import StepCallback
from kerora.training.checkpoints import save_checkpoint
from kerora.training.random_state import read_random_state, write_random_state


class CheckpointEvery(StepCallback):
    """Saves a checkpoint at a cadence, and at the end of `fit`.

    Args:
        folder: Where the checkpoints go.
        data_state: From a number of steps to the position in the data: `batches.state_at`.
        seconds: Time between checkpoints; None for none by time.
        steps: Steps between checkpoints; None for none by steps.
        start_step: Steps done before this `fit`.
        extra: Stored with every checkpoint.
        before_save: Called before each save; `MetricsLog.flush`, so that what was logged up to
            here is on the disk.
        stop_requested: Whether to save between these steps and then leave `fit` with
            `KeyboardInterrupt`.

    Raises:
        CheckpointError: Within `fit`, if a checkpoint cannot be written.

    Example:
    ```python
    model.fit(batches, callbacks=[CheckpointEvery("run/checkpoints", batches.state_at)])
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        data_state: Callable[[int], dict[str, Any]] | None = None,
        *,
        seconds: float | None = 60.0,
        steps: int | None = None,
        start_step: int = 0,
        extra: dict[str, Any] | None = None,
        before_save: Callable[[], None] = lambda: None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(start_step)
        self.folder = folder
        self.seconds = seconds
        self.steps = steps
        self.extra = extra
        self._data_state = data_state
        self._before_save = before_save
        self._stop_requested = stop_requested
        self._saved_step = start_step
        self._saved_at = time.monotonic()
        self._random_state = read_random_state()

    def on_train_begin(self, logs: Any = None) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # To get ready, `fit` draws numbers (PyTorch's loader does), in every attempt anew.
        write_random_state(self._random_state)
        self._random_state = {}
        super().on_train_batch_begin(batch, logs)

    def between_steps(self, step: int) -> None:
        stop = self._stop_requested is not None and self._stop_requested()
        if stop or self._is_due(step):
            self.save(step)
        if stop:
            raise KeyboardInterrupt(f"stopped after step {step}, saved in {self.folder}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        # Here and not at the end of training: then an optimizer's averages have replaced the
        # weights, and a longer run could not go on from them.
        self.save(self.step)

    def save(self, step: int) -> None:
        """Save now, unless this step was."""
        if step == self._saved_step:
            return
        self.catch_up()
        self._before_save()
        data_state = None if self._data_state is None else self._data_state(step)
        save_checkpoint(self.folder, self.model, step, data_state, self.extra)
        self._saved_step = step
        self._saved_at = time.monotonic()

    def _is_due(self, step: int) -> bool:
        if self.steps is not None and step // self.steps > self._saved_step // self.steps:
            return True
        return self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
