"""Measure the loss on held-out data while a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kerora.training.callbacks.step_callbacks import StepCallback


class ValidateEvery(StepCallback):
    """Evaluates the model every so many steps, and at the end of `fit`.

    Steps are those of the run, so that an interrupted one validates where a whole one would.

    Args:
        data: Whatever `model.evaluate` takes, such as `kerora.data.Batches`.
        steps: Steps between evaluations.
        record: Called with the step and `{"val_loss": …, …}`: `MetricsLog.record`, say.
        start_step: Steps done before this `fit`.
        **arguments: For `model.evaluate`.

    Example:
    ```python
    model.fit(batches, callbacks=[log, ValidateEvery(held_out, 100, log.record)])
    ```
    """

    def __init__(
        self,
        data: Any,
        steps: int,
        record: Callable[[int, dict[str, float]], None],
        *,
        start_step: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(start_step)
        self.data = data
        self.steps = steps
        self._record = record
        self._arguments = arguments
        self._validated = start_step

    def between_steps(self, step: int) -> None:
        if step // self.steps > self._validated // self.steps:
            self.validate(step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.validate(self.step)

    def validate(self, step: int) -> None:
        """Evaluate now, unless it was done after this step."""
        if step == self._validated:
            return
        self.catch_up()
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        results = self.model.evaluate(self.data, return_dict=True, verbose=0, **self._arguments)
        names = {name: value for name, value in results.items() if not name.startswith("step_")}
        self._record(step, {f"val_{name}": float(value) for name, value in names.items()})
        self._validated = step
