"""Hugging Face names and layouts of a backbone's weights, read off KerasHub's own converter.

A converter says, for each weight, which Hugging Face tensor fills it and how that tensor is turned.
Run on a stand-in for the backbone, with a loader that notes instead of reading, it gives the whole
map: nothing is loaded, nothing is written, and a quantised model is named like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import keras
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from kerora.adapters.factorization import layer_kernel_shape
from kerora.adapters.saved_model import own_class
from kerora.models.converters import UnroundedArray, converter_of_backbone

WeightKey = tuple[int, str]
"""`(id(layer), attribute)`, for example `(id(query_dense), "kernel")`."""


@dataclasses.dataclass(frozen=True)
class HuggingFaceWeight:
    """Where the values of a Keras weight lie in its Hugging Face tensor.

    For a kernel with contracted axes `i...` and output axes `o...`, whose Hugging Face matrix is
    `(out, in)`: `kernel[i..., o...] == matrix[rows[o...], columns[i...]]`.

    Attributes:
        name: Name in the `transformers` causal language model, for example
            `"model.layers.0.self_attn.q_proj.weight"`.
        rows: Row of the matrix for each output position, shape `(o...)`; for a bias, the index of
            each of its values. None where the tensor is used as it is (embeddings, norms).
        columns: Column of the matrix for each input position, shape `(i...)`; None but for kernels.
    """

    name: str
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    @property
    def module(self) -> str:
        """Name of the module that holds the tensor."""
        return self.name.rpartition(".")[0]


def huggingface_weights(backbone: keras.Model) -> dict[WeightKey, HuggingFaceWeight]:
    """The Hugging Face counterpart of each weight of a backbone that has one.

    Args:
        backbone: A KerasHub backbone, adapted or quantised or neither.

    Returns:
        Weights by `(id(layer), attribute)`. Empty for a model that KerasHub cannot read from a
        Hugging Face folder. A weight that is no plain permutation of its tensor (fused or stacked
        ones) is left out.

    Example:
    ```python
    weights = huggingface_weights(model.backbone)
    layer = model.backbone.transformer_layers[0].attention.query_dense
    weights[id(layer), "kernel"].name  # "model.layers.0.self_attn.q_proj.weight"
    ```
    """
    converter = converter_of_backbone(backbone)
    if converter is None:
        return {}
    notes = _Notes("transformer." if own_class(backbone).__name__ == "GPT2Backbone" else "model.")
    # A converter may do anything with tensors that are not there; what it named before counts.
    with contextlib.suppress(Exception):
        converter.convert_weights(_StandIn(backbone), notes, {"model_type": _model_type(backbone)})
    return notes.weights


def matrix_position(
    layer: keras.layers.Layer, weight: HuggingFaceWeight, index: tuple[int, ...]
) -> tuple[int, int]:
    """Row and column, in its Hugging Face matrix, of one value of a layer's kernel."""
    assert weight.rows is not None and weight.columns is not None
    inputs = _contracted_axes(layer)
    row = weight.rows[tuple(k for axis, k in enumerate(index) if axis not in inputs)]
    column = weight.columns[tuple(index[axis] for axis in inputs)]
    return int(row), int(column)


def _model_type(backbone: keras.Model) -> str:
    # Converters that serve two model types ask which one it is.
    kind = own_class(backbone).__name__
    if kind == "GemmaBackbone":
        return "gemma2" if backbone.use_post_ffw_norm else "gemma"
    if kind in ("Gemma3Backbone", "Gemma4Backbone"):
        family = kind.removesuffix("Backbone").lower()
        return family if backbone.vision_encoder is not None else f"{family}_text"
    return ""


class _StandIn:
    """A layer as converters see it, whose weights can be named but not written."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        # An int4 kernel would be unpacked by reading the attribute, so it is not read.
        if name in ("kernel", "embeddings"):
            return _Weight(self._layer, name)
        if "norm" in name and not hasattr(self._layer, name):
            # Converters name norms that some configurations leave out.
            return _Unread()
        return _stand_in(getattr(self._layer, name), self._layer, name)

    def get_layer(self, name: str) -> _StandIn:
        return _StandIn(self._layer.get_layer(name))


def _stand_in(value: Any, layer: keras.layers.Layer, name: str) -> Any:
    if isinstance(value, keras.layers.Layer):
        return _StandIn(value)
    if isinstance(value, keras.Variable):
        return _Weight(layer, name)
    if isinstance(value, list):
        return [_stand_in(item, layer, name) for item in value]
    return value


class _Weight:
    """A weight of a stand-in: where it is, and its shape."""

    def __init__(self, layer: keras.layers.Layer, attribute: str) -> None:
        self.layer = layer
        self.attribute = attribute

    @property
    def shape(self) -> tuple[int, ...]:
        if self.attribute == "embeddings":
            return (self.layer.input_dim, self.layer.output_dim)
        linear = (keras.layers.Dense, keras.layers.EinsumDense)
        if self.attribute == "kernel" and isinstance(self.layer, linear):
            return layer_kernel_shape(self.layer)
        return tuple(getattr(self.layer, self.attribute).shape)

    def assign(self, value: Any) -> None:
        """Leave the weight as it is."""


class _Notes:
    """A loader that notes what a converter asks for."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.weights: dict[WeightKey, HuggingFaceWeight] = {}

    def get_tensor(self, name: str) -> Any:
        return _Unread()

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        if not isinstance(keras_variable, _Weight):
            return
        # Some converters leave out the name of the model inside the causal language model.
        is_full = hf_weight_key.startswith((self.prefix, "lm_head."))
        name = hf_weight_key if is_full else self.prefix + hf_weight_key
        hook = hook_fn or (lambda tensor, shape: tensor)
        weight: HuggingFaceWeight | None = HuggingFaceWeight(name)
        if keras_variable.attribute == "kernel":
            weight = _kernel_layout(name, keras_variable, hook)
        elif keras_variable.attribute == "bias":
            weight = _bias_layout(name, keras_variable, hook)
        if weight is not None:
            self.weights[id(keras_variable.layer), keras_variable.attribute] = weight


def _kernel_layout(name: str, weight: _Weight, hook: Any) -> HuggingFaceWeight | None:
    layer, shape = weight.layer, weight.shape
    inputs = _contracted_axes(layer)
    outputs = [axis for axis in range(len(shape)) if axis not in inputs]
    fan_in = math.prod(shape[axis] for axis in inputs)
    fan_out = math.prod(shape[axis] for axis in outputs)
    row_of_each = np.broadcast_to(np.arange(fan_out)[:, None], (fan_out, fan_in))
    column_of_each = np.broadcast_to(np.arange(fan_in), (fan_out, fan_in))
    try:
        # Broadcast views go through reshapes and transposes without being copied, so that the
        # largest kernel costs no memory.
        rows = np.asarray(hook(row_of_each.view(UnroundedArray), list(shape)))
        columns = np.asarray(hook(column_of_each.view(UnroundedArray), list(shape)))
    except (ValueError, IndexError, TypeError):
        return None
    if rows.shape != shape or columns.shape != shape:
        return None
    row = rows[tuple(slice(None) if axis in outputs else 0 for axis in range(len(shape)))]
    column = columns[tuple(slice(None) if axis in inputs else 0 for axis in range(len(shape)))]
    if not _constant_along(rows, inputs) or not _constant_along(columns, outputs):
        return None
    if not _is_permutation(row) or not _is_permutation(column):
        return None
    return HuggingFaceWeight(name, rows=row, columns=column)


def _bias_layout(name: str, weight: _Weight, hook: Any) -> HuggingFaceWeight | None:
    flat = np.arange(math.prod(weight.shape)).view(UnroundedArray)
    try:
        rows = np.asarray(hook(flat, list(weight.shape)))
    except (ValueError, IndexError, TypeError):
        return None
    return HuggingFaceWeight(name, rows=rows) if _is_permutation(rows) else None


def _contracted_axes(layer: keras.layers.Layer) -> list[int]:
    if not isinstance(layer, keras.layers.EinsumDense):
        return [0]
    inputs, kernel, outputs = layer.equation.replace(" ", "").replace("->", ",").split(",")
    return [k for k, axis in enumerate(kernel) if axis in inputs and axis not in outputs]


def _constant_along(values: np.ndarray, axes: list[int]) -> bool:
    if all(values.strides[axis] == 0 or values.shape[axis] == 1 for axis in axes):
        return True
    first = values[tuple(slice(0, 1) if k in axes else slice(None) for k in range(values.ndim))]
    return bool((values == first).all())


def _is_permutation(values: np.ndarray) -> bool:
    return bool((np.sort(values, axis=None) == np.arange(values.size)).all())


class _Unread(NDArrayOperatorsMixin):
    """Stands for a tensor that a converter handles itself, such as an expert's: any operation on it
    gives another, and none has values."""

    shape = property(lambda self: (self,) * 4)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return self

    def __array_function__(self, function, types, args, kwargs):
        return self

    def __getitem__(self, key):
        return self

    def __setitem__(self, key, value):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self
