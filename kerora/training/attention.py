"""Attention in training and evaluation steps: packed rows, computed by the fastest way there is.

`training_attention` is what a step wraps around the forward pass. Within it the attention layers of
`kerora.models.attention_layers` compute their softmax with the backend's `segment_attention`, which
reads the segment ids themselves, so that no `(length, length)` mask is made. The other families,
and TensorFlow, keep KerasHub's own attention with a mask of the segments. Outside of a step
KerasHub's code runs untouched.

This file is the one place that replaces methods of KerasHub's attention layers.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

from kerora.models.attention_layers import ATTENTION_LAYERS, AttentionLayer, AttentionOptions
from kerora.models.cpu_bfloat16 import product_dtype
from kerora.models.families import packing_support
from kerora.training.rotary_tables import shared_rotary_tables
from kerora.training.segments import current_segment_ids, segmented

_pass: ContextVar[dict[Any, Any] | None] = ContextVar("kerora_forward_pass", default=None)
_hooked: ContextVar[bool] = ContextVar("kerora_hooked_attention", default=False)


@contextlib.contextmanager
def training_attention(backbone: Any, segment_ids: Any) -> Iterator[None]:
    """The context of one forward pass over packed rows.

    Args:
        backbone: the KerasHub backbone that is about to be called. A family that cannot be packed
            (see `packing_support`) keeps its own masks; its rows must hold one example each.
        segment_ids: integer tensor `(batch, length)`, the batch's `padding_mask`: 0 for padding
            and 1, 2, ... for the examples packed into a row.

    Example:

        with training_attention(model.backbone, x["padding_mask"]):
            hidden = model.backbone(x)
    """
    if isinstance(segment_ids, keras.KerasTensor):
        segment_ids = None
    if segment_ids is not None and not packing_support(backbone, segment_ids.shape[1])[0]:
        segment_ids = None
    _install()
    # XLA lays out KerasHub's own attention over several devices; the kernels it cannot divide.
    spread = keras.distribution.distribution() is not None
    begun, hooked = _pass.set({}), _hooked.set(segment_ids is not None and not spread)
    try:
        with segmented(segment_ids), shared_rotary_tables():
            yield
    finally:
        _pass.reset(begun)
        _hooked.reset(hooked)


def in_step() -> bool:
    """Whether a `training_attention` context is active."""
    return _pass.get() is not None


def of_forward_pass() -> dict[Any, Any]:
    """What layers keep for each other until the `training_attention` context ends."""
    kept = _pass.get()
    assert kept is not None, "outside of a step"
    return kept


def segment_attention(query: Any, key: Any, value: Any, segment_ids: Any, **options: Any) -> Any:
    """Causal softmax attention among the tokens of one segment.

    Args:
        query: `(batch, length, heads, dim)`.
        key: `(batch, length, key_value_heads, dim)`; `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        segment_ids: int `(batch, length)`; 0 is padding, whose output is zero.
        **options: the fields of `AttentionOptions`.

    Returns:
        `(batch, length, heads, dim)`, in the type of `query`.

    Raises:
        NotImplementedError: on TensorFlow, which keeps KerasHub's attention.
    """
    attention = _backend_attention()
    if attention is None:
        raise NotImplementedError(f"segment_attention on {keras.backend.backend()}")
    return attention(query, key, value, segment_ids, **options)


def _backend_attention() -> Callable[..., Any] | None:
    backend = keras.backend.backend()
    if backend not in ("jax", "torch"):
        return None
    return importlib.import_module(f"kerora.training.attention_{backend}").segment_attention


@functools.cache
def _install() -> None:
    """Replaces the methods of KerasHub's attention layers, once."""
    attention = _backend_attention()
    if attention is None:
        return
    for layer in ATTENTION_LAYERS:
        module = importlib.import_module(f"keras_hub.src.models.{layer.module}")
        _hook(getattr(module, layer.class_name), layer, attention)


def _hook(layer_class: Any, described: AttentionLayer, attention: Callable[..., Any]) -> None:
    stock_call, stock_compute = layer_class.call, layer_class._compute_attention

    signature = inspect.signature(stock_call)

    @functools.wraps(stock_call)
    def call(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not _hooked.get() or described.options(self) is None:
            return stock_call(self, hidden_states, *args, **kwargs)
        bound = signature.bind(self, hidden_states, *args, **kwargs)
        bound.arguments["attention_mask"] = _mask_of_call(described)
        if described.repeats is None:
            return stock_call(*bound.args, **bound.kwargs)
        repeats = getattr(self, described.repeats)
        setattr(self, described.repeats, 1)
        try:
            return stock_call(*bound.args, **bound.kwargs)
        finally:
            setattr(self, described.repeats, repeats)

    @functools.wraps(stock_compute)
    def compute(self: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        options = described.options(self) if _hooked.get() else None
        if options is None:
            return stock_compute(self, query, key, value, *args, **kwargs)
        arrays = [ops.cast(x, product_dtype(self)) for x in (query, key, value)]
        if described.heads_first:
            arrays = [ops.transpose(x, (0, 2, 1, 3)) for x in arrays]
        out = attention(*arrays, current_segment_ids(), **_fields(options))
        out = ops.cast(out, query.dtype)
        return (out, None) if described.heads_first else out

    # Keras passes `training` to a layer whose `call` names it; `wraps` keeps the signature.
    assert inspect.signature(call) == inspect.signature(stock_call)
    layer_class.call, layer_class._compute_attention = call, compute


def _mask_of_call(described: AttentionLayer) -> Any:
    if described.heads_first:
        return None  # It asks nothing of its mask that `compute` does not see to.
    # One column instead of `(length, length)`: all that a layer still asks of its mask is
    # which queries have no key at all.
    return ops.cast(current_segment_ids()[:, :, None] > 0, "int32")


def _fields(options: AttentionOptions) -> dict[str, Any]:
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    if options.sinks is not None:
        fields["sinks"] = ops.convert_to_tensor(options.sinks)
    return fields
