"""Callbacks that count steps over a whole run, and a list that does not stall the device."""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np

LAG = 2


class StepCallback(keras.callbacks.Callback):
    """A callback that knows the step of the run: batches since its beginning, resumes included.

    Subclasses override `after_step(step, logs)`, called once a step, and `between_steps(step)`,
    called where the model can be read and saved: after a step, before the next. With
    `steps_per_execution`, both come once an execution.

    Args:
        start_step: Steps done before this `fit`.
    """

    def __init__(self, start_step: int = 0) -> None:
        super().__init__()
        self.start_step = start_step
        self.step = start_step
        self._epoch_start = start_step
        self._boundary = start_step
        self.held_by: StepCallbacks | None = None

    def catch_up(self) -> None:
        """Wait until `after_step` was called for every step so far; see `StepCallbacks`."""
        if self.held_by is not None:
            self.held_by.catch_up()

    def after_step(self, step: int, logs: dict[str, Any]) -> None:
        """`logs` are those of step `step`, counted from 1."""

    def between_steps(self, step: int) -> None:
        """`step` steps are done, and their values are in the model."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch_start = self.step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._reach(self._epoch_start + batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step = self._epoch_start + batch + 1
        self.after_step(self.step, logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._reach(self.step)

    def _reach(self, step: int) -> None:
        if step > self._boundary:
            self._boundary = step
            self.between_steps(step)


class StepCallbacks(keras.callbacks.CallbackList):
    """Keras' list of callbacks, without the wait for the device after every step.

    Keras turns the logs of a step into floats before the next step is started. This list hands
    them on two steps later, when the device has long finished them and has work to do meanwhile;
    `catch_up` hands on all of them now. Pass it as `callbacks` of `fit`.

    Args:
        callbacks: Keras callbacks.
        model: The model.

    Example:
    ```python
    model.fit(data, callbacks=StepCallbacks([MetricsLog("metrics.jsonl")], model))
    ```
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback], model: keras.Model) -> None:
        self._waiting: collections.deque[tuple[int, Any]] = collections.deque()
        super().__init__(callbacks, add_history=True, model=model)
        for callback in self.callbacks:
            if isinstance(callback, StepCallback):
                callback.held_by = self

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Copied, since a metric may hand out the very buffer that the next step overwrites.
        copied = {name: _copy(value) for name, value in (logs or {}).items()}
        self._waiting.append((batch, copied))
        self._hand_on(LAG)

    def catch_up(self) -> None:
        """Hand on the logs of every step so far; this waits for the device."""
        self._hand_on(0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.catch_up()
        super().on_epoch_end(epoch, logs)

    def _hand_on(self, left: int) -> None:
        while len(self._waiting) > left:
            batch, logs = self._waiting.popleft()
            floats = {name: _number(value) for name, value in logs.items()}
            for callback in self.callbacks:
                callback.on_train_batch_end(batch, floats)


def _copy(value: Any) -> Any:
    return keras.ops.copy(value) if keras.ops.is_tensor(value) else value


def _number(value: Any) -> Any:
    value = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value
    return float(value) if np.ndim(value) == 0 else value
