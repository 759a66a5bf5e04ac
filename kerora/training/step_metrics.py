"""Metrics that a step itself keeps up to date."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class LatestValue(keras.metrics.Metric):
    """A metric that is what it was last given."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        # TensorFlow would add up what its replicas were each given, which is the same.
        self.value = self.add_variable(
            (), initializer="zeros", aggregation="only_first_replica", name="value"
        )

    def update_state(self, value: Any) -> None:
        self.value.assign(ops.cast(value, "float32"))

    def result(self) -> Any:
        return ops.copy(self.value.value)


class LossMean(keras.metrics.Mean):
    """The `loss` of Keras' logs, where each supervised token weighs the same.

    Keras averages the losses of batches by their rows, so that the few tokens of a last batch
    would weigh as much as all of a full one.
    """

    def __init__(self) -> None:
        super().__init__(name="loss", dtype="float32")

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Nothing: this is Keras, which knows the batch's loss and rows, but not its tokens."""

    def add(self, loss: Any, weight: Any) -> None:
        """A batch's loss, and what it weighs."""
        super().update_state(ops.cast(loss, "float32"), ops.cast(weight, "float32"))


def weigh_loss_by_tokens(model: keras.Model) -> None:
    """Has a model that was compiled report the mean loss of a token; to be told by its step."""
    # Keras' private name. Its `__setattr__` would list the metric a second time.
    object.__setattr__(model, "_loss_tracker", LossMean())
