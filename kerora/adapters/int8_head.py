"""Gradients through the tied logits of an int8 embedding.

Keras rounds the hidden states that a quantised `ReversibleEmbedding` turns into logits, and gives
that rounding no gradient of its own, as it does in Dense and EinsumDense: nothing below the head
would learn. Here the logits are Keras' own, and their gradient is that of the unrounded product.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops


def is_int8_head(layer: keras.layers.Layer) -> bool:
    """Whether the layer is an embedding that makes logits from rounded hidden states."""
    is_head = isinstance(layer, keras.layers.ReversibleEmbedding)
    return is_head and layer.quantization_mode == "int8"


def int8_logits(layer: keras.layers.Layer, base_call: Callable, hidden):
    """`base_call(hidden, reverse=True)`, with the gradient of `hidden · tableᵀ`.

    Args:
        layer: An int8 ReversibleEmbedding without soft cap.
        base_call: Its own call.
        hidden: Hidden states, `(..., width)`.

    Returns:
        Logits, `(..., vocabulary)`.
    """

    @ops.custom_gradient
    def logits_of(hidden):
        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return ops.cast(ops.matmul(upstream, _table(layer, upstream.dtype)), hidden.dtype)

        return base_call(hidden, reverse=True), gradient

    return logits_of(hidden)


def _table(layer: keras.layers.Layer, dtype):
    """The dequantised table that makes the logits, `(vocabulary, width)`."""
    if layer.tie_weights:
        table, scale = layer._embeddings, layer.embeddings_scale
    else:
        table, scale = ops.transpose(layer.reverse_embeddings), layer.reverse_embeddings_scale
    return ops.cast(table, dtype) / ops.cast(ops.expand_dims(scale, -1), dtype)
