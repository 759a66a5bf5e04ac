"""Stop a run whose loss is no longer a number."""

from __future__ import annotations

import math
from typing import Any

from kerora.training.callbacks.step_callbacks import StepCallback
from kerora.training.errors import NonFiniteLoss


class StopOnNonFinite(StepCallback):
    """Raises `NonFiniteLoss` at the first step whose loss is infinite or not a number.

    Example:
    ```python
    model.fit(data, callbacks=[StopOnNonFinite()])
    ```
    """

    def after_step(self, step: int, logs: dict[str, Any]) -> None:
        loss = float(logs.get("step_loss", logs.get("loss", 0.0)))
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                step,
                f"The loss of step {step} is {loss}. Checkpoints are from before that step. A "
                "lower learning rate, gradient clipping (`global_clipnorm`) or warm-up may help; "
                "so may a look at the rows of that step.",
            )
