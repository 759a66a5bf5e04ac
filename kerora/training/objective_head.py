"""The matrix that turns hidden states into logits, as blocks of the vocabulary.

With a tied embedding W of shape (V, D) and adapters A (V, r), B (r, D) of scale s, the logits of
hidden states h are `h·Wᵀ + Σ (s·h·Bᵀ)·Aᵀ`: a sum of products `features·tableᵀ`, one table being W
and one each A. The objective reads the tables block by block and needs nothing else of the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.lora import EmbeddingLora
from kerora.models.cpu_bfloat16 import product_dtype


@dataclasses.dataclass(frozen=True)
class Table:
    """A matrix of shape (V, k), in the form in which its layer stores it.

    Attributes:
        arrays: What it is made of: the values, and the scales of a quantised one. Each has the
            vocabulary on `axis`.
        axis: 0 for values of shape (V, k), 1 (the last) for (k, V).
        decode: Makes (n, k) floats of n entries of the vocabulary, taken from each array.
        trainable: Whether a gradient is wanted.
    """

    arrays: tuple[Any, ...]
    axis: int
    decode: Callable[..., Any]
    trainable: bool = False

    def with_arrays(self, arrays: tuple[Any, ...]) -> Table:
        """The same table over other tensors, for example those that are differentiated."""
        return dataclasses.replace(self, arrays=tuple(arrays))

    def block(self, start: Any, size: int) -> Any:
        """Rows `start` to `start + size`, as (size, k)."""
        return self.decode(*(_slice(array, start, size, self.axis) for array in self.arrays))

    def rows(self, token_ids: Any) -> Any:
        """The rows of these tokens, as (n, k)."""
        return self.decode(
            *(ops.take(array, token_ids, axis=self._axis_of(array)) for array in self.arrays)
        )

    def _axis_of(self, array: Any) -> int:
        return 0 if self.axis == 0 else len(array.shape) - 1


def _slice(array: Any, start: Any, size: int, axis: int) -> Any:
    shape = list(array.shape)
    axis = 0 if axis == 0 else len(shape) - 1
    starts = [0] * len(shape)
    shape[axis] = size
    starts[axis] = start
    return ops.slice(array, starts, shape)


@dataclasses.dataclass(frozen=True)
class Head:
    """A `ReversibleEmbedding` called in reverse, with its active adapters.

    Attributes:
        layer: The embedding.
    """

    layer: keras.layers.ReversibleEmbedding

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per token."""
        return self.layer.input_dim

    @property
    def soft_cap(self) -> float | None:
        """Bound c of logits that become `c·tanh(logits / c)`; None where they are not bounded."""
        return self.layer.logit_soft_cap

    @property
    def dtype(self) -> str:
        """Type in which the products are taken."""
        dtype = self.layer.reverse_dtype or product_dtype(self.layer)
        return keras.backend.standardize_dtype(dtype)

    def factors(self, hidden: Any) -> tuple[tuple[Any, ...], tuple[Table, ...]]:
        """Features (tokens, k) and tables (V, k) whose products add up to the logits.

        Args:
            hidden: Hidden states of shape (tokens, D).

        Returns:
            As many features as tables. Gradients flow from the features back to `hidden` and to
            the adapters' B.
        """
        hidden = ops.cast(hidden, self.dtype)
        features, tables = [self._quantize(hidden)], [self._embedding_table()]
        for adapter in _active_adapters(self.layer):
            b = ops.cast(adapter.kernel_b, self.dtype)
            features.append(ops.matmul(hidden, ops.transpose(b)) * adapter.config.scale)
            a = adapter.kernel_a
            tables.append(
                Table((ops.convert_to_tensor(a),), 0, _floats(self.dtype, 0), bool(a.trainable))
            )
        return tuple(features), tuple(tables)

    def _quantize(self, hidden: Any) -> Any:
        # The layer rounds its inputs to int8; the gradient of rounding is zero, and nothing below
        # the head would learn: it passes straight through instead.
        quantizer = getattr(self.layer, "inputs_quantizer", None)
        if self.layer.quantization_mode is None or quantizer is None:
            return hidden
        values, scale = quantizer(ops.stop_gradient(hidden))
        rounded = ops.cast(values, hidden.dtype) / ops.cast(scale, hidden.dtype)
        return hidden + ops.stop_gradient(rounded - hidden)

    def _embedding_table(self) -> Table:
        layer, mode = self.layer, self.layer.quantization_mode
        axis, prefix = (0, "") if layer.tie_weights else (1, "reverse_")
        values = layer._embeddings if layer.tie_weights else layer.reverse_embeddings
        if mode not in ("int8", "int4"):
            array = ops.convert_to_tensor(values)
            if product_dtype(layer) != layer.compute_dtype and not values.trainable:
                return Table((ops.view(array, "int16"),), axis, _bits(self.dtype, axis))
            return Table((array,), axis, _floats(self.dtype, axis), bool(values.trainable))
        variables = [values, getattr(layer, f"{prefix}embeddings_scale")]
        block_size = getattr(layer, "_int4_block_size", None)
        if mode == "int4" and block_size not in (None, -1):
            variables.append(getattr(layer, f"{prefix}embeddings_zero"))
            decode = _grouped_integers(self.dtype, axis, layer.output_dim, layer.g_idx)
        else:
            packed_width = layer.output_dim if mode == "int4" else None
            decode = _scaled_integers(self.dtype, axis, packed_width)
        return Table(tuple(ops.convert_to_tensor(v) for v in variables), axis, decode)


def find_head(model: keras.Model) -> Head | None:
    """The head of a causal language model whose logits need not be held.

    Args:
        model: A task of KerasHub with a `backbone`.

    Returns:
        The `Head` if the model's output is a `ReversibleEmbedding`, called in reverse on the
        backbone's output and on nothing else; None where logits are made in another way (a head
        inside the backbone, a slice or scale between, Keras' own LoRA on the embedding).
    """
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return None
    layer, node_index, _ = outputs[0]._keras_history
    if not isinstance(layer, keras.layers.ReversibleEmbedding):
        return None
    node = layer._inbound_nodes[node_index]
    is_reverse = node.arguments.kwargs.get("reverse", False)
    is_direct = node.input_tensors[0]._keras_history.operation is model.backbone
    is_known = layer.quantization_mode in (None, "int8", "int4") and not layer.lora_enabled
    is_known &= all(isinstance(adapter, EmbeddingLora) for adapter in _active_adapters(layer))
    return Head(layer) if is_reverse and is_direct and is_known else None


def _active_adapters(layer: keras.layers.Layer) -> list[Any]:
    if not is_host(layer) or not layer.tie_weights:
        return []
    return [get_adapter(layer, name) for name in layer.active_adapters]


def _floats(dtype: str, axis: int) -> Callable[..., Any]:
    def decode(values: Any) -> Any:
        values = ops.cast(values, dtype)
        return values if axis == 0 else ops.transpose(values)

    return decode


def _bits(dtype: str, axis: int) -> Callable[..., Any]:
    """For bfloat16 values viewed as int16: XLA for the CPU would widen them all to take a few."""
    decode_floats = _floats(dtype, axis)
    return lambda values: decode_floats(ops.view(values, "bfloat16"))


def _scaled_integers(dtype: str, axis: int, packed_width: int | None) -> Callable[..., Any]:
    def decode(values: Any, scale: Any) -> Any:
        if packed_width is not None:
            values = keras.quantizers.unpack_int4(values, packed_width, axis=1 - axis)
        values = ops.cast(values, dtype)
        values = values if axis == 0 else ops.transpose(values)
        return values / ops.expand_dims(ops.cast(scale, dtype), 1)

    return decode


def _grouped_integers(dtype: str, axis: int, width: int, groups: Any) -> Callable[..., Any]:
    def decode(values: Any, scale: Any, zero: Any) -> Any:
        values = ops.cast(keras.quantizers.unpack_int4(values, width, axis=1 - axis), dtype)
        index = ops.cast(groups, "int32")
        scale = ops.take(ops.cast(scale, dtype), index, axis=1 - axis)
        zero = ops.take(ops.cast(zero, dtype), index, axis=1 - axis)
        values = (values - zero) * scale
        return values if axis == 0 else ops.transpose(values)

    return decode
