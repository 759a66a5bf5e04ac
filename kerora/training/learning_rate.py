"""The learning rate of any step of a run."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops


class LearningRateReader:
    """Tells the learning rate of any step without asking the device that trains.

    Args:
        optimizer: A Keras optimizer, with a number or a schedule.

    Example:
    ```python
    reader = LearningRateReader(model.optimizer)
    reader.refresh()
    reader.at(0)  # of the next step; at(1) of the one after it
    ```
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self._optimizer = optimizer
        self.refresh()

    def refresh(self) -> None:
        """Take over a rate that a callback set; only where the variables hold their values."""
        self._scalars = [
            (variable, np.array(ops.convert_to_numpy(variable.value)))
            for variable in self._optimizer.variables
            if variable.name in ("iteration", "learning_rate")
        ]

    def at(self, step: int) -> float | None:
        """The rate `step` steps after the last `refresh`; None if the optimizer knows none."""
        with keras.device("cpu:0"):
            mapping = [
                (variable, ops.convert_to_tensor(_later(variable, value, step)))
                for variable, value in self._scalars
            ]
            with keras.StatelessScope(state_mapping=mapping):
                rate = float(ops.convert_to_numpy(self._optimizer.learning_rate))
        return rate if math.isfinite(rate) else None


def _later(variable: keras.Variable, value: np.ndarray, step: int) -> np.ndarray:
    return value + np.array(step, value.dtype) if variable.name == "iteration" else value
