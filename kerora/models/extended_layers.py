"""Giving a built layer of KerasHub's another way to compute, in place."""

from __future__ import annotations

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


@functools.cache
def _extended(base: Any, mixin: Any) -> type:
    return type(base.__name__, (mixin, base), {"__module__": base.__module__})
