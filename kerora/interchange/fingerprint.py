"""Telling whether a model is the base that an adapter was trained on.

A fingerprint holds a few values from some of the base's weights. It is not a hash, because the same
base must be known again in another type: float32 rounds to bfloat16, and of a quantised base only
the weights that stayed in floating point are compared. Biases are left out, since adapters may
train them. Samples of kernels also say where in a Hugging Face folder each value lies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.saved_model import own_class
from kerora.adapters.targets import candidates
from kerora.interchange.huggingface_names import huggingface_weights, matrix_position

_MATRICES, _VECTORS, _VALUES = 12, 4, 8
# bfloat16 keeps 8 significant bits, and rounding moves a value by at most 2^-9 of itself.
_TOLERANCE = 2.0**-7
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def fingerprint(model: keras.Model) -> dict[str, Any]:
    """The fingerprint of a model's base, adapters left out.

    Returns:
        A JSON object: `backbone`, the name of the class, and `samples`, which gives for some
        weights by path their shape and a few values, and for kernels that `transformers` has too
        the name of its `tensor` and the `places` (row and column) of the values.
    """
    base = getattr(model, "backbone", model)
    weights = _base_weights(base)
    matrices = [path for path, weight in weights.items() if len(weight.shape) > 1]
    vectors = [path for path, weight in weights.items() if len(weight.shape) == 1]
    # Chosen by a hash of the path, so that a base of which some weights are quantised away gives
    # the rest of the same choice.
    chosen = sorted(matrices, key=_digest)[:_MATRICES] + sorted(vectors, key=_digest)[:_VECTORS]
    positions = _huggingface_positions(base)
    samples = {
        path: {
            "shape": list(weights[path].shape),
            "values": _sample(weights[path]),
            **positions.get(id(weights[path]), {}),
        }
        for path in sorted(chosen)
    }
    return {"backbone": _class_name(base), "samples": samples}


def difference(model: keras.Model, saved: dict[str, Any]) -> str | None:
    """What tells the base of `model` from the one that `saved` was taken of; None if nothing does.

    Args:
        model: The model at hand.
        saved: What `fingerprint` returned for another.
    """
    base = getattr(model, "backbone", model)
    if saved["backbone"] != _class_name(base):
        return f"it is a {_class_name(base)}, not a {saved['backbone']}"
    weights = _base_weights(base)
    for path, sample in saved["samples"].items():
        weight = weights.get(path)
        if weight is None:
            if _is_quantized(base):
                continue
            return f"it has no weight '{path}'"
        if list(weight.shape) != sample["shape"]:
            return f"'{path}' has shape {list(weight.shape)}, not {sample['shape']}"
        if not _alike(_sample(weight), sample["values"]):
            return f"the values of '{path}' differ"
    return None


def file_difference(
    value: Callable[[str, int, int], float | None], saved: dict[str, Any]
) -> str | None:
    """What tells a Hugging Face folder from the base that `saved` was taken of, as `difference`.

    Args:
        value: Reads the value of a tensor at a row and a column; None where it is quantised, NaN
            where there is none.
        saved: What `fingerprint` returned. One that names no tensors is not compared.
    """
    for sample in saved["samples"].values():
        values = [value(sample["tensor"], *place) for place in sample.get("places", ())]
        if None not in values and values and not _alike(values, sample["values"]):
            return f"it has other values in '{sample['tensor']}', or no such tensor"
    return None


def preset_difference(
    value: Callable[[str, tuple[int, ...]], float | None], backbone: str, saved: dict[str, Any]
) -> str | None:
    """What tells a KerasHub preset from the base that `saved` was taken of, as `difference`.

    Args:
        value: Reads a value of a variable by the variable's path and the value's index; None where
            the preset does not say which one that is.
        backbone: Name of the preset's class.
        saved: What `fingerprint` returned.
    """
    if saved["backbone"] != backbone:
        return f"it is a {backbone}, not a {saved['backbone']}"
    for path, sample in saved["samples"].items():
        values = [value(path, index) for index in _sample_indices(tuple(sample["shape"]))]
        if None not in values and not _alike(values, sample["values"]):
            return f"the values of '{path}' differ"
    return None


def _alike(values: Any, saved: Any) -> bool:
    values, expected = np.array(values, float), np.array(saved, float)
    if values.shape != expected.shape:
        return False
    scale = np.maximum(np.maximum(np.abs(values), np.abs(expected)), 1e-6)
    return bool((np.abs(values - expected) <= _TOLERANCE * scale).all())


def _huggingface_positions(base: keras.Model) -> dict[int, dict[str, Any]]:
    named = huggingface_weights(base)
    positions = {}
    for candidate in candidates(base):
        weights = named.get((id(candidate.layer), "kernel"), [])
        kernel = getattr(candidate.layer, "_kernel", None)
        is_quantized = getattr(candidate.layer, "quantization_mode", None) is not None
        # A sample names one tensor, and a fused kernel has several.
        if len(weights) == 1 and isinstance(kernel, keras.Variable) and not is_quantized:
            [weight] = weights
            places = [
                matrix_position(candidate.layer, weight, index)
                for index in _sample_indices(kernel.shape)
            ]
            positions[id(kernel)] = {"tensor": weight.name, "places": places}
    return positions


def _base_weights(base: keras.Model) -> dict[str, keras.Variable]:
    left_out: set[int] = set()
    for candidate in candidates(base):
        layer = candidate.layer
        if getattr(layer, "quantization_mode", None):
            left_out.update(id(variable) for variable in layer.weights)
        elif is_host(layer):
            for name in layer.adapter_names:
                left_out.update(id(variable) for variable in get_adapter(layer, name).weights)
    weights: dict[str, keras.Variable] = {}
    for variable in base.weights:
        is_float = keras.backend.standardize_dtype(variable.dtype) in _FLOATS
        if is_float and variable.name != "bias" and id(variable) not in left_out:
            # Paths that occur twice are ambiguous; the first one is as good a sample as any.
            weights.setdefault(variable.path, variable)
    return weights


def _sample(variable: keras.Variable) -> list[float]:
    # One value at a time: flattening a sharded or large table would copy it.
    return [float(f"{_value(variable, index):.6g}") for index in _sample_indices(variable.shape)]


def _sample_indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    size = math.prod(shape)
    places = [size * k // _VALUES + size // (2 * _VALUES) for k in range(min(_VALUES, size))]
    return [
        tuple(int(k) for k in np.unravel_index(min(place, size - 1), shape)) for place in places
    ]


def _value(variable: keras.Variable, index: tuple[int, ...]) -> float:
    value = variable.value[index]
    return float(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _is_quantized(base: keras.Model) -> bool:
    return any(getattr(c.layer, "quantization_mode", None) for c in candidates(base))


def _class_name(base: keras.Model) -> str:
    return own_class(base).__name__
