"""A KerasHub backbone with kerora's `enable_lora`."""

from __future__ import annotations

from typing import Any

from kerora.adapters import AdaptedModel, AdapterError, LoraConfig, add_adapter
from kerora.adapters.config import PEFT_NAMES, Bias
from kerora.interchange.keras_lora import load_keras_lora
from kerora.keyword_hints import hints


class Backbone(AdaptedModel):
    """Mixin of a KerasHub backbone: kerora's `enable_lora`."""

    @hints(PEFT_NAMES)
    def enable_lora(
        self,
        rank: int,
        target_layer_names: Any = None,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: Any = None,
        exclude: Any = None,
        bias: Bias = "none",
        name: str = "default",
    ) -> None:
        """Freeze the backbone and add a low-rank adapter; a superset of KerasHub's call.

        Args:
            rank: Inner size of the factors.
            target_layer_names: KerasHub's name for `targets`.
            alpha: Scale of the delta; the effective scale is `alpha / rank`. Default: `rank`.
            dropout: Dropout on the adapter's inputs in training.
            targets: Layer names, regular expressions, a list of either, or `"all-linear"`.
                Default: the query and value projections.
            exclude: Layers to leave out, in the same forms.
            bias: `"none"`, `"lora_only"` or `"all"`.
            name: Name of the adapter.

        Raises:
            AdapterError: If no layer matches or a value is out of range.

        Example:
        ```python
        model.backbone.enable_lora(8, alpha=16, targets="all-linear")
        ```
        """
        if targets is not None and target_layer_names is not None:
            raise ValueError(
                "`target_layer_names` is KerasHub's name for `targets`; give one of the two. "
                f"Received: {target_layer_names!r} and {targets!r}"
            )
        config = LoraConfig(
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets if targets is not None else target_layer_names,
            exclude=exclude,
            bias=bias,
        )
        add_adapter(self, config, name)

    def save_lora_weights(self, filepath: Any) -> None:
        """KerasHub's own format has no place for this adapter.

        Raises:
            AdapterError: Always; says what to call.
        """
        raise AdapterError(
            f"kerora keeps adapters as PEFT folders: call `save_adapter(folder)` on the task. "
            f"Received: {filepath!r}"
        )

    def load_lora_weights(self, filepath: Any) -> None:
        """Add what KerasHub's own `save_lora_weights` wrote as an adapter.

        The file holds no biases; see `kerora.interchange.load_adapter`, which reads it too.

        Raises:
            AdapterError: If it is missing or damaged, or does not fit.
        """
        load_keras_lora(self, filepath)
