"""How many parameters train, of how many, per kind of target."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import keras

from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.targets import candidates


@dataclasses.dataclass(frozen=True)
class TrainableParameters:
    """Counts of a model's parameters.

    Attributes:
        trainable: Parameters that training changes.
        total: All parameters, adapters included.
        by_target: Adapter parameters per kind of target (the layer's name).
        layers: Adapted layers per kind of target.
    """

    trainable: int
    total: int
    by_target: dict[str, int]
    layers: dict[str, int]

    def __str__(self) -> str:
        share = 100 * self.trainable / max(self.total, 1)
        lines = [f"Trainable: {self.trainable:,} of {self.total:,} parameters ({share:.3g}%)"]
        rest = self.trainable - sum(self.by_target.values())
        for name, count in self.by_target.items():
            lines.append(f"  {name:<28}{self.layers[name]:>4} layers{count:>16,}")
        if self.by_target and rest:
            lines.append(f"  {'biases and other weights':<28}{'':>11}{rest:>16,}")
        return "\n".join(lines)


def count_trainable_parameters(model: keras.Model) -> TrainableParameters:
    """Count the parameters of a built model.

    Example:
    >>> print(count_trainable_parameters(model))
    Trainable: 460,800 of 2,506,633,216 parameters (0.0184%)
      query                         18 layers         331,776
      value                         18 layers         129,024
    """
    by_target: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for candidate in candidates(model):
        if is_host(candidate.layer):
            layers[candidate.layer.name] += 1
            for name in candidate.layer.adapter_names:
                adapter = get_adapter(candidate.layer, name)
                by_target[candidate.layer.name] += adapter.parameter_count()
    return TrainableParameters(
        trainable=_count(model.trainable_weights),
        total=_count(model.weights),
        by_target=dict(by_target),
        layers=dict(layers),
    )


def _count(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)
