"""Giving a built layer of KerasHub's another way to compute, in place."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras


def extend_layer(layer: keras.layers.Layer, mixin: type) -> None:
    """Put a class before the layer's own, so that its `call` is the one that counts.

    Args:
        layer: A layer, built or not; its weights stay.
        mixin: A subclass of `keras.layers.Layer` whose `call` may use `super().call`.
    """
    own: Any = type(layer)
    extension: Any = mixin
    layer.__class__ = _extended(own, extension)


def replace_layer(owner: keras.layers.Layer, name: str, replacement: keras.layers.Layer) -> None:
    """Put another layer in the place of one that a built layer holds, with its only variable.

    Args:
        owner: A built layer.
        name: The attribute of it that holds the layer that goes.
        replacement: A layer of the same name, not built yet, that makes one variable when it is.
    """
    replaced: Any = getattr(owner, name)
    replacing: Any = replacement
    (variable,) = replaced.weights
    owner._tracker.unlock()
    owner._tracker.untrack(replaced)
    setattr(owner, name, replacement)
    owner._tracker.lock()
    replacing.add_weight = lambda *args, **kwargs: variable
    with contextlib.ExitStack() as scopes:
        # Keras makes a layer's path of the names that it is built within.
        for part in replaced.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(part))
        replacing.build()
    del replacing.add_weight


@functools.cache
def _extended(base: Any, mixin: Any) -> type:
    extended = type(base.__name__, (mixin, base), {"__module__": base.__module__})
    # It is saved as what it was, and what is read by that name is that.
    registered = keras.saving.get_registered_name(base)
    package, is_registered, name = registered.partition(">")
    if is_registered:
        keras.saving.register_keras_serializable(package, name)(extended)
        keras.saving.get_custom_objects()[registered] = base
    return extended
