"""Low-rank adapters on Keras layers."""

from kerora.adapters.config import LoraConfig
from kerora.adapters.errors import AdapterError
from kerora.adapters.lifecycle import (
    adapted_layers,
    adapter_configs,
    disabled_adapters,
    merge_adapter,
    remove_adapter,
    set_active_adapters,
)
from kerora.adapters.report import TrainableParameters, count_trainable_parameters
from kerora.adapters.saved_model import AdaptedModel, add_adapter, as_own_class, extend, own_class

__all__ = [
    "AdaptedModel",
    "AdapterError",
    "LoraConfig",
    "TrainableParameters",
    "adapted_layers",
    "adapter_configs",
    "add_adapter",
    "as_own_class",
    "count_trainable_parameters",
    "disabled_adapters",
    "extend",
    "merge_adapter",
    "own_class",
    "remove_adapter",
    "set_active_adapters",
]
