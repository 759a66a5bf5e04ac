"""Packed rows: several examples in one row, told apart by segment ids.

A batch's `padding_mask` carries segment ids: 0 is padding, and the tokens of the k-th example
packed into a row carry k. Inside `segmented(segment_ids)` the decoder layers of KerasHub confine
attention to tokens of one segment, and learned position embeddings restart at each segment.
Rotary and ALiBi positions are relative within an example, so they need no restart. Outside of the
context KerasHub runs as it always does.

KerasHub has no public way to give its decoders an attention mask, so this file is the one place
that reaches into it: `merge_padding_and_attention_mask`, which every decoder layer calls by a name
imported into its own module, and `PositionEmbedding.call`.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from keras import ops
from keras_hub.layers import PositionEmbedding
from keras_hub.src.layers.modeling import transformer_layer_utils

_MERGE_NAME = "merge_padding_and_attention_mask"
_stock_merge = transformer_layer_utils.merge_padding_and_attention_mask
_stock_position_call = PositionEmbedding.call
_segment_ids: ContextVar[Any] = ContextVar("kerora_segment_ids", default=None)


@contextlib.contextmanager
def segmented(segment_ids: Any) -> Iterator[None]:
    """Confines the attention of KerasHub's decoders to equal segment ids.

    Args:
        segment_ids: integer tensor `(batch, length)`, 0 for padding and 1, 2, ... for the examples
            packed into a row. `None` leaves KerasHub's own masks in place.

    Example:

        with segmented(x["padding_mask"]):
            hidden = backbone(x)
    """
    _install()
    if segment_ids is not None:
        segment_ids = ops.cast(segment_ids, "int32")
    token = _segment_ids.set(segment_ids)
    try:
        yield
    finally:
        _segment_ids.reset(token)


def current_segment_ids() -> Any:
    """The segment ids of the innermost `segmented` context, or `None` outside of one."""
    return _segment_ids.get()


def segment_mask(segment_ids: Any) -> Any:
    """`(batch, length, length)` int32: 1 where query and key belong to the same example.

    Padding attends nowhere and is attended from nowhere. Causality is not part of this mask.
    """
    segment_ids = ops.cast(segment_ids, "int32")
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    # int32, because TensorFlow's `minimum` with KerasHub's causal mask has no boolean kernel.
    return ops.cast(ops.logical_and(ops.equal(query, key), ops.greater(key, 0)), "int32")


def restarted_positions(segment_ids: Any) -> Any:
    """`(batch, length)` int32: the position of each token within its own segment."""
    segment_ids = ops.cast(segment_ids, "int32")
    index = ops.broadcast_to(
        ops.arange(segment_ids.shape[1], dtype="int32")[None, :], ops.shape(segment_ids)
    )
    before = ops.pad(segment_ids[:, :-1], [[0, 0], [1, 0]], constant_values=-1)
    starts = ops.where(ops.not_equal(segment_ids, before), index, ops.zeros_like(index))
    return index - ops.associative_scan(ops.maximum, starts, axis=1)


def _merge(inputs: Any, padding_mask: Any, attention_mask: Any) -> Any:
    segment_ids = _segment_ids.get()
    if segment_ids is None:
        return _stock_merge(inputs, padding_mask, attention_mask)
    mask = segment_mask(segment_ids)
    if attention_mask is None:
        return mask
    return ops.minimum(mask, ops.cast(attention_mask, "int32"))


@functools.wraps(_stock_position_call)
def _position_call(self: Any, inputs: Any, start_index: Any = 0, positions: Any = None) -> Any:
    segment_ids = _segment_ids.get()
    if segment_ids is not None and positions is None:
        positions = restarted_positions(segment_ids)
    return _stock_position_call(self, inputs, start_index=start_index, positions=positions)


@functools.cache
def _install() -> None:
    """Replaces KerasHub's function in every module that imported it by name, once."""
    PositionEmbedding.call = _position_call
    for name, module in list(sys.modules.items()):
        if name.startswith("keras_hub.") and getattr(module, _MERGE_NAME, None) is _stock_merge:
            setattr(module, _MERGE_NAME, _merge)
