"""Rotary tables made once per forward pass, instead of once per layer and head.

A rotary embedding's sines and cosines depend on the row length alone. KerasHub writes them out in
every layer, for queries and for keys, and XLA fuses them into the rotation, so that they are
computed anew for each row and head. Inside `shared_rotary_tables()` layers of the same
configuration share one table; under JAX it is computed while the step is traced.

This file is the one place that replaces `_compute_cos_sin_embedding` of KerasHub's layers.
"""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras_hub.layers import RotaryEmbedding
from keras_hub.src.models.phi3.phi3_rotary_embedding import Phi3SuScaledRotaryEmbedding

_METHOD = "_compute_cos_sin_embedding"
_tables: ContextVar[dict[Any, Any] | None] = ContextVar("kerora_rotary_tables", default=None)
_configs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def shared_rotary_tables() -> Iterator[None]:
    """Layers that are called within share their sines and cosines.

    Example:

        with shared_rotary_tables():
            hidden = backbone(x)
    """
    _install()
    token = _tables.set({})
    try:
        yield
    finally:
        _tables.reset(token)


@functools.cache
def _install() -> None:
    if keras.backend.backend() == "tensorflow":
        return  # A tensor of one function's graph cannot be kept for another's.
    for layer_class in (RotaryEmbedding, Phi3SuScaledRotaryEmbedding):
        _share(layer_class)


def _share(layer_class: Any) -> None:
    stock = getattr(layer_class, _METHOD)

    @functools.wraps(stock)
    def compute(self: Any, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
        tables = _tables.get()
        fixed = positions is None and isinstance(start_index, int)
        if tables is None or not fixed or isinstance(inputs, keras.KerasTensor):
            return stock(self, inputs, start_index, positions)
        sizes = (inputs.shape[1], inputs.ndim, inputs.shape[-1], start_index)
        key = (type(self), _config(self), str(getattr(inputs, "device", "")), sizes)
        if key not in tables:
            with _while_tracing():
                tables[key] = stock(self, inputs, start_index, positions)
        return tables[key]

    setattr(layer_class, _METHOD, compute)


def _config(layer: Any) -> Any:
    if layer not in _configs:
        config = {**layer.get_config(), "name": None, "dtype": layer.compute_dtype}
        _configs[layer] = repr(sorted(config.items()))
    return _configs[layer]


def _while_tracing() -> contextlib.AbstractContextManager[Any]:
    """Under JAX a concrete table, which every inner trace may hold."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.ensure_compile_time_eval()
