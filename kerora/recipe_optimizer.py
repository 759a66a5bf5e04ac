"""The optimizer and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kerora.default_learning_rates import default_learning_rate
from kerora.recipe import OptimizerRecipe, Recipe

_CLASSES = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "lion": "Lion",
    "adafactor": "Adafactor",
    "muon": "Muon",
}
NOT_DECAYED = ("bias", "scale")


def peak_learning_rate(recipe: Recipe, steps: int) -> float:
    """The learning rate of a recipe, or the default for so many batches."""
    if recipe.optimizer.learning_rate is not None:
        return recipe.optimizer.learning_rate
    updates = max(1, steps // recipe.optimizer.gradient_accumulation)
    return default_learning_rate(adapted=recipe.adapter != "none", steps=updates)


def make_optimizer(
    recipe: OptimizerRecipe, learning_rate: float, steps: int
) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a recipe.

    Args:
        recipe: All but its learning rate.
        learning_rate: Its peak; see `peak_learning_rate`.
        steps: Batches in the run.
    """
    accumulation = recipe.gradient_accumulation
    # Keras asks a schedule for the rate of a batch, also where several batches make an update.
    warmup = recipe.warmup * steps if recipe.warmup < 1 else recipe.warmup
    schedule = WarmupSchedule(learning_rate, steps, round(warmup), recipe.schedule)
    optimizer = getattr(keras.optimizers, _CLASSES[recipe.name])(
        learning_rate=schedule,
        weight_decay=recipe.weight_decay,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=accumulation if accumulation > 1 else None,
    )
    optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
    return optimizer


@keras.saving.register_keras_serializable(package="kerora")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to the peak, then a fall to 0 or none.

    The first step already has a rate above 0, and the last one does too.

    Args:
        peak: Highest learning rate.
        steps: Steps in the run.
        warmup: Steps until the peak.
        shape: `"cosine"`, `"linear"` or `"constant"`.

    Example:
    ```python
    keras.optimizers.AdamW(WarmupSchedule(2e-4, steps=1000, warmup=30))
    ```
    """

    def __init__(self, peak: float, steps: int, warmup: int = 0, shape: str = "cosine") -> None:
        super().__init__()
        self.peak = peak
        self.steps = steps
        self.warmup = warmup
        self.shape = shape

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup, 1)
        done = ops.clip((step - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        if self.shape == "cosine":
            fall = 0.5 * (1.0 + ops.cos(math.pi * done))
        else:
            fall = 1.0 - done if self.shape == "linear" else ops.ones_like(done)
        return self.peak * ops.where(step < self.warmup, rise, fall)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "steps": self.steps,
            "warmup": self.warmup,
            "shape": self.shape,
        }
