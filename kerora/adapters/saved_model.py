"""Adapted models in `.keras` files.

An adapted model's config is the config of what it was before, and its adapters. Loading rebuilds
the former, adds the latter, and Keras then restores base weights and factors apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from kerora.adapters.config import LoraConfig
from kerora.adapters.errors import AdapterError
from kerora.adapters.host import uncover_quantize
from kerora.adapters.lifecycle import (
    adapted_layers,
    adapter_configs,
    add_adapter_to_layers,
    set_active_adapters,
)
from kerora.adapters.targets import candidates, select
from kerora.garbage_collection import older_objects_passed_over
from kerora.model_mixin import ModelMixin

_extended_classes: dict[tuple[type, type], type] = {}


class AdaptedModel(ModelMixin):
    """What a model has beside its own class once it holds adapters."""

    def get_config(self) -> dict[str, Any]:
        with as_own_class(self):
            base = keras.saving.serialize_keras_object(self)
        base.pop("compile_config", None)
        adapters = {}
        active = []
        # Paths may differ in a rebuilt model, and patterns match by them; the order does not.
        position = {id(c.layer): n for n, c in enumerate(candidates(self))}
        for name, config in adapter_configs(self).items():
            layers = [candidate.layer for candidate in adapted_layers(self, name)]
            adapters[name] = {
                "config": dataclasses.asdict(config),
                "layers": [position[id(layer)] for layer in layers],
            }
            if name in layers[0].active_adapters:
                active.append(name)
        return {"base": base, "adapters": adapters, "active": active}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        model = keras.saving.deserialize_keras_object(config["base"], custom_objects)
        for name, saved in config["adapters"].items():
            if name not in adapter_configs(model):
                everything = candidates(model)
                layers = [everything[n] for n in saved["layers"]]
                add_adapter_to_layers(model, LoraConfig(**saved["config"]), name, layers)
                extend(model, AdaptedModel, "AdaptedModel")
        if config["adapters"]:
            set_active_adapters(model, config["active"])
        return model

    def quantize(self, mode: Any, *args: Any, **kwargs: Any) -> None:
        # Keras would pass over the adapted layers without a word.
        if adapter_configs(self):
            raise AdapterError(
                "A model that holds adapters can no longer be quantized. Quantize the model first, "
                f"then add the adapter. Received: mode={mode!r}"
            )
        # Keras stops at a tokenizer, which is a layer that is never built, and warns of every norm.
        kwargs.setdefault("filters", _can_be_quantized)
        quantize: Any = self.__dict__.get("_base_quantize", super().quantize)
        with older_objects_passed_over():
            quantize(mode, *args, **kwargs)


def _can_be_quantized(layer: keras.layers.Layer) -> bool:
    return layer.built and type(layer).quantize is not keras.layers.Layer.quantize


def add_adapter(model: keras.Model, config: LoraConfig, name: str = "default") -> keras.Model:
    """Add a low-rank adapter to a built model, in place, and freeze everything else.

    Args:
        model: A KerasHub task or backbone, or any built `keras.Model`.
        config: Rank, scale, targets and the like.
        name: Name of the adapter: letters, digits and underscores.

    Returns:
        The same model.

    Raises:
        AdapterError: If no layer matches, the name is taken, or a target cannot hold an adapter.
            The model is then as it was.

    Example:
    ```python
    kerora.add_adapter(model, kerora.LoraConfig(rank=8, targets="all-linear"))
    ```
    """
    add_adapter_to_layers(model, config, name, select(model, config.targets, config.exclude))
    extend(model, AdaptedModel, "AdaptedModel")
    return model


def extend(model: keras.Model, mixin: type[AdaptedModel], saved_as: str) -> None:
    """Give a model, in place, the methods of `mixin`, saved in `.keras` files as `saved_as`."""
    if isinstance(model, mixin):
        return
    model.__class__ = _extended_class(own_class(model), mixin, saved_as)
    uncover_quantize(model)


def own_class(model: keras.Model) -> Any:
    """The class that the model had before it held adapters."""
    return type(model).__bases__[1] if isinstance(model, AdaptedModel) else type(model)


def _extended_class(plain: type, mixin: type[AdaptedModel], saved_as: str) -> type:
    if (plain, mixin) not in _extended_classes:
        extended = type(plain.__name__, (mixin, plain), {"__module__": plain.__module__})
        keras.saving.register_keras_serializable("kerora", saved_as)(extended)
        # All extended classes share that name, under which `from_config` of the mixin is found. The
        # class itself must not be: KerasHub looks for the classes of its presets in this registry.
        keras.saving.get_custom_objects()[f"kerora>{saved_as}"] = mixin
        _extended_classes[plain, mixin] = extended
    return _extended_classes[plain, mixin]


@contextlib.contextmanager
def as_own_class(model: keras.Model) -> Iterator[None]:
    """Within this context the model is of the class that it had before it held adapters."""
    extended = type(model)
    model.__class__ = own_class(model)
    try:
        yield
    finally:
        model.__class__ = extended


keras.saving.register_keras_serializable("kerora", "AdaptedModel")(AdaptedModel)
