"""What a low-rank adapter is: its rank, scale, dropout, targets and bias mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from kerora.adapters.errors import AdapterError
from kerora.keyword_hints import hints

Bias = Literal["none", "lora_only", "all"]
PEFT_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "exclude_modules": "exclude",
    "adapter_name": "name",
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685).

    A kernel W with contracted axes `i...` and output axes `o...` gets two float32 factors, A of
    shape `(i..., rank)` and B of shape `(rank, o...)`, and the layer computes
    `x·W + (x·A)·B · alpha / rank`.

    Args:
        rank: Inner size of the factors, at least 1.
        alpha: Scale of the delta; the effective scale is `alpha / rank`. Default: `rank`.
        dropout: Fraction of the adapter's inputs set to zero in training, in [0, 1). Default 0.
        targets: Layer names, path endings, or regular expressions that match a whole name or
            path; one or a sequence of them; or `"all-linear"` for every Dense and EinsumDense.
            Default: the query and value projections of every attention layer.
        exclude: Layers to leave out, in the same forms as `targets`.
        bias: Which biases train: `"none"`, those of the adapted layers (`"lora_only"`), or
            `"all"`.

    Raises:
        AdapterError: For a rank, alpha, dropout or bias outside the above.

    Example:
    ```python
    config = kerora.LoraConfig(rank=8, alpha=16, targets=["query", "value", "ffw_gating"])
    kerora.add_adapter(model, config)
    ```
    """

    rank: int = 4
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    bias: Bias = "none"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise AdapterError(
                f"`rank` must be a whole number, at least 1. Received: {self.rank!r}"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise AdapterError(f"`alpha` must be a positive number. Received: {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"`dropout` must lie in [0, 1). Received: {self.dropout!r}")
        if self.bias not in get_args(Bias):
            raise AdapterError(f"`bias` must be one of {get_args(Bias)}. Received: {self.bias!r}")
        for name in ("targets", "exclude"):
            object.__setattr__(self, name, _as_patterns(name, getattr(self, name)))

    @property
    def scale(self) -> float:
        """The factor `alpha / rank` on the delta."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


def _as_patterns(name: str, value: object) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise AdapterError(
        f"`{name}` must be a string or a non-empty sequence of strings. Received: {value!r}"
    )


# A dataclass' own `__init__` is there only once the class is made.
LoraConfig.__init__ = hints(PEFT_NAMES)(LoraConfig.__init__)  # type: ignore[method-assign]
