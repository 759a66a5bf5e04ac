"""KerasHub's Gemma 4 blocks call their feed-forward layers, instead of using the kernels alone.

KerasHub's block multiplies by the kernels of these layers itself and never calls them, so that an
adapter on one, and the scales of a quantised kernel, would be passed by.

This file is the one place that replaces `call` of KerasHub's Gemma 4 blocks.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import keras

from kerora.adapters.stand_in import stand_in

_BLOCK = "Gemma4TextDecoderBlock"
_LAYERS = ("gating_ffw", "gating_ffw_2", "ffw_linear")


def is_gemma4_block(layer: keras.layers.Layer) -> bool:
    """Whether it is a block of KerasHub's Gemma 4 text model."""
    return type(layer).__name__ == _BLOCK


@functools.cache
def call_feedforward_layers() -> None:
    """Has all Gemma 4 blocks of the process call their feed-forward layers.

    A block without adapters, in floats, computes what it did.
    """
    module: Any = importlib.import_module("keras_hub.src.models.gemma4.gemma4_decoder_block")
    block: Any = getattr(module, _BLOCK)
    stock = block.call

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        layers = {name: _Named(getattr(self, name)) for name in _LAYERS}
        return stock(stand_in(self, **layers), *args, **kwargs)

    module.ops, block.call = _Operations(), call


class _Kernel:
    """What stands for a layer's kernel in a product."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        self.layer = layer


class _Named:
    """What stands for a layer where only its kernel is asked for."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        self.kernel = _Kernel(layer)


class _Operations:
    """`keras.ops`, where a product with a `_Kernel` calls its layer."""

    def __getattr__(self, name: str) -> Any:
        return getattr(keras.ops, name)

    def matmul(self, x1: Any, x2: Any) -> Any:
        return x2.layer(x1) if isinstance(x2, _Kernel) else keras.ops.matmul(x1, x2)
