"""Hugging Face names and layouts of a backbone's weights, read off KerasHub's own converter.

A converter says, for each weight, which Hugging Face tensor fills it and how that tensor is turned.
Run on a stand-in for the backbone, with a loader that notes instead of reading, it gives the whole
map: nothing is loaded, nothing is written, and a quantised model is named like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections import Counter
from typing import Any

import keras
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from kerora.adapters.factorization import layer_kernel_shape
from kerora.adapters.saved_model import own_class
from kerora.interchange.model_kinds import model_kind, name_in_model, parts_of_name
from kerora.models.converters import UnroundedArray, converter_of_backbone

WeightKey = tuple[int, str]
"""`(id(layer), attribute)`, for example `(id(query_dense), "kernel")`."""


@dataclasses.dataclass(frozen=True)
class HuggingFaceWeight:
    """Where the values of a Keras weight lie in its Hugging Face tensor.

    For a kernel with contracted axes `i...` and output axes `o...`, whose Hugging Face matrix is
    `(out, in)`: `kernel[i..., o...] == matrix[rows[o...], columns[i...]]`. A fused matrix, such as
    GPT-2's `c_attn`, fills several kernels, each from rows of its own. A fused kernel, such as
    Swin's `attention_qkv` or the `weights_in` of DINOv2's SwiGLU, is filled by several matrices,
    each some of its outputs.

    Attributes:
        name: Name in the `transformers` model, for example
            `"model.layers.0.self_attn.q_proj.weight"`.
        rows: Row of the matrix for each output position, shape `(o...)`; for a bias, the index of
            each of its values. None where the tensor is used as it is (embeddings, norms).
        columns: Column of the matrix for each input position, shape `(i...)`; None but for kernels.
        row_count: Number of rows of the whole matrix, or of values of the whole bias.
        is_transposed: Whether the tensor is stored as `(in, out)`, as in GPT-2's `Conv1D`.
        outputs: Which outputs of the kernel, or values of the bias, the tensor fills; None for all.
    """

    name: str
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    row_count: int = 0
    is_transposed: bool = False
    outputs: slice | None = None

    @property
    def module(self) -> str:
        """Name of the module that holds the tensor."""
        return self.name.rpartition(".")[0]


def huggingface_weights(backbone: keras.Model) -> dict[WeightKey, list[HuggingFaceWeight]]:
    """The Hugging Face counterparts of each weight of a backbone that has some.

    Args:
        backbone: A KerasHub backbone, adapted or quantised or neither.

    Returns:
        Weights by `(id(layer), attribute)`: one, or several for a fused kernel or bias. Empty for a
        model that KerasHub cannot read from a Hugging Face folder. A weight that is no choice of
        rows of its matrix (stacked ones) is left out.

    Example:
    ```python
    weights = huggingface_weights(model.backbone)
    layer = model.backbone.transformer_layers[0].attention.query_dense
    weights[id(layer), "kernel"][0].name  # "model.layers.0.self_attn.q_proj.weight"
    ```
    """
    converter = converter_of_backbone(backbone)
    if converter is None:
        return {}
    notes = _Notes()
    # A converter may do anything with tensors that are not there; what it named before counts.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it leaves out
        converter.convert_weights(_StandIn(backbone), notes, _config(backbone))
    return _layouts(notes.slots, backbone) | _fused_layouts(notes.fused, backbone)


def _config(backbone: keras.Model) -> dict[str, Any]:
    # The fields that converters read while they name weights.
    if own_class(backbone).__name__ == "BLIP2Backbone":
        is_t5 = hasattr(backbone.language_model, "t5")
        return {"text_config": {"model_type": "t5" if is_t5 else "opt"}}
    return {
        "model_type": _model_type(backbone),
        "n_embd": getattr(backbone, "hidden_dim", None),
        "position_embedding_type": getattr(backbone, "position_embedding_type", None),
        "emb_layer_norm_before": getattr(backbone, "use_pre_layer_norm", False),
        "qkv_bias": getattr(backbone, "qkv_bias", True),
    }


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

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # Some converters refuse a backbone that is no instance of theirs.
        return type(self._layer)

    def __getattr__(self, name: str) -> Any:
        # An int4 kernel would be unpacked by reading the attribute, so it is not read.
        # RoBERTa's backbone and SAM 3's image encoder call a layer by that name. MetaCLIP 2's
        # converter writes to the variable behind a table's attribute.
        name = "embeddings" if name == "_embeddings" else name
        is_computed = isinstance(getattr(type(self._layer), name, None), property)
        if name in ("kernel", "embeddings") and is_computed:
            return _Weight(self._layer, name)
        if name == "weights":
            # BLIP-2's converter counts those of a layer.
            is_table = isinstance(self._layer, keras.layers.Embedding)
            return [
                _Weight(self._layer, "embeddings" if is_table else "kernel"),
                _Weight(self._layer, "bias"),
            ]
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
    if inspect.isroutine(value):
        # DINOv2's converter has the table of positions resized, which has no values here.
        return lambda *args, **kwargs: _Unread()
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
        """Leave the weight as it is, and note the tensors that would fill it together."""
        if isinstance(value, _Unread) and value.notes is not None and len(value.names) > 1:
            value.notes.fused.append((value.names, self))


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A Keras weight, the name of the tensor that fills it, and how that tensor is turned."""

    name: str
    weight: _Weight
    hook: Any

    @property
    def fan_out(self) -> int:
        shape = self.weight.shape
        if self.weight.attribute != "kernel":
            return math.prod(shape)
        inputs = _contracted_axes(self.weight.layer)
        return math.prod(shape[axis] for axis in range(len(shape)) if axis not in inputs)


class _Notes:
    """A loader that notes what a converter asks for."""

    def __init__(self) -> None:
        self.slots: list[_Slot] = []
        self.fused: list[tuple[tuple[str, ...], _Weight]] = []

    def get_tensor(self, name: str) -> Any:
        return _Unread((name,), self)

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        if not isinstance(keras_variable, _Weight):
            return
        parts = parts_of_name(hf_weight_key)
        if len(parts) > 1:
            self.fused.append((parts, keras_variable))
        else:
            hook = hook_fn or (lambda tensor, shape: tensor)
            self.slots.append(_Slot(hf_weight_key, keras_variable, hook))


def _layouts(slots: list[_Slot], backbone: keras.Model) -> dict[WeightKey, list[HuggingFaceWeight]]:
    together: Counter[str] = Counter()
    for slot in slots:
        together[slot.name] += slot.fan_out
    result = {}
    for slot in slots:
        name = _full_name(slot.name, backbone)
        weight: HuggingFaceWeight | None = HuggingFaceWeight(name)
        if slot.weight.attribute == "kernel":
            weight = _kernel_layout(name, slot, together[slot.name])
        elif slot.weight.attribute == "bias":
            weight = _bias_layout(name, slot, together[slot.name])
        if weight is not None:
            result[id(slot.weight.layer), slot.weight.attribute] = [weight]
    return result


def _fused_layouts(
    fused: list[tuple[tuple[str, ...], _Weight]], backbone: keras.Model
) -> dict[WeightKey, list[HuggingFaceWeight]]:
    result = {}
    for names, weight in fused:
        # Of a Dense layer, whose kernel is `(in, out)`; its parts (queries, keys and values; what
        # gates and what is gated) are as many.
        size = weight.shape[-1] // len(names)
        columns = np.arange(weight.shape[0]) if weight.attribute == "kernel" else None
        result[id(weight.layer), weight.attribute] = [
            HuggingFaceWeight(
                _full_name(name, backbone),
                rows=np.arange(size),
                columns=columns,
                row_count=size,
                outputs=slice(start, start + size),
            )
            for start, name in zip(range(0, size * len(names), size), names, strict=True)
        ]
    return result


def _full_name(name: str, backbone: keras.Model) -> str:
    # Some converters leave out the name of the model inside the one with a head, or add it.
    kind = model_kind(backbone)
    if getattr(backbone, "vision_encoder", None) is None:
        name = name.replace("model.language_model.", "model.", 1)
    name = name_in_model(name, kind.renamed)
    if not kind.prefix:
        for prefix in kind.other_prefixes:
            name = name.removeprefix(prefix)
        return name
    if name.startswith((kind.prefix, "lm_head.")):
        return name
    return kind.prefix + name.removeprefix("model.")


def _kernel_layout(name: str, slot: _Slot, row_count: int) -> HuggingFaceWeight | None:
    shape = slot.weight.shape
    inputs = _contracted_axes(slot.weight.layer)
    outputs = [axis for axis in range(len(shape)) if axis not in inputs]
    fan_in = math.prod(shape[axis] for axis in inputs)
    row_of_each = np.broadcast_to(np.arange(row_count)[:, None], (row_count, fan_in))
    column_of_each = np.broadcast_to(np.arange(fan_in), (row_count, fan_in))
    for is_transposed in (False, True):
        # Broadcast views go through reshapes and transposes without being copied, so that the
        # largest kernel costs no memory.
        rows = _turned(slot, row_of_each.T if is_transposed else row_of_each)
        columns = _turned(slot, column_of_each.T if is_transposed else column_of_each)
        if rows is None or columns is None:
            continue
        row = rows[tuple(slice(None) if axis in outputs else 0 for axis in range(len(shape)))]
        column = columns[tuple(slice(None) if axis in inputs else 0 for axis in range(len(shape)))]
        if not _constant_along(rows, inputs) or not _constant_along(columns, outputs):
            continue
        if _all_differ(row) and _all_differ(column):
            return HuggingFaceWeight(name, row, column, row_count, is_transposed)
    return None


def _bias_layout(name: str, slot: _Slot, row_count: int) -> HuggingFaceWeight | None:
    rows = _turned(slot, np.arange(row_count))
    if rows is None or not _all_differ(rows):
        return None
    return HuggingFaceWeight(name, rows=rows, row_count=row_count)


def _turned(slot: _Slot, tensor: np.ndarray) -> np.ndarray | None:
    shape = slot.weight.shape
    try:
        turned = np.asarray(slot.hook(tensor.view(UnroundedArray), list(shape)))
    except (ValueError, IndexError, TypeError):
        return None
    return turned if turned.shape == shape else None


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


def _all_differ(values: np.ndarray) -> bool:
    return len(np.unique(values)) == values.size


class _Unread(NDArrayOperatorsMixin):
    """Stands for a tensor that a converter handles itself, such as an expert's: any operation on it
    gives another, and none has values.

    Attributes:
        names: Names of the tensors whose rows, one after another, it is; none after any other
            operation.
        notes: The loader that these are from.
    """

    def __init__(self, names: tuple[str, ...] = (), notes: _Notes | None = None) -> None:
        self.names, self.notes = names, notes

    shape = property(lambda self: (self,) * 4)
    T = property(lambda self: self)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return _Unread()

    def __array_function__(self, function, types, args, kwargs):
        if function is np.concatenate and kwargs.get("axis") == 0:
            names = sum((tensor.names for tensor in args[0]), ())
            return _Unread(names, args[0][0].notes)
        return _Unread()

    def __getitem__(self, key):
        return _Unread()

    def __setitem__(self, key, value):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: _Unread()
