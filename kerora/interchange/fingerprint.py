"""Telling whether a model is the base that an adapter was trained on.

A fingerprint holds a few values from some of the base's weights. It is not a hash, because the same
base must be known again in another type: float32 rounds to bfloat16, and of a quantised base only
the weights that stayed in floating point are compared. Biases are left out, since adapters may
train them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import keras
import numpy as np

from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.saved_model import own_class
from kerora.adapters.targets import candidates

_MATRICES, _VECTORS, _VALUES = 12, 4, 8
# bfloat16 keeps 8 significant bits, and rounding moves a value by at most 2^-9 of itself.
_TOLERANCE = 2.0**-7
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def fingerprint(model: keras.Model) -> dict[str, Any]:
    """The fingerprint of a model's base, adapters left out.

    Returns:
        A JSON object: `backbone`, the name of the class, and `samples`, which gives for some
        weights by path their shape and a few values.
    """
    base = getattr(model, "backbone", model)
    weights = _base_weights(base)
    matrices = [path for path, weight in weights.items() if len(weight.shape) > 1]
    vectors = [path for path, weight in weights.items() if len(weight.shape) == 1]
    # Chosen by a hash of the path, so that a base of which some weights are quantised away gives
    # the rest of the same choice.
    chosen = sorted(matrices, key=_digest)[:_MATRICES] + sorted(vectors, key=_digest)[:_VECTORS]
    samples = {
        path: {"shape": list(weights[path].shape), "values": _sample(weights[path])}
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
        values, expected = np.array(_sample(weight)), np.array(sample["values"])
        scale = np.maximum(np.maximum(np.abs(values), np.abs(expected)), 1e-6)
        if (np.abs(values - expected) > _TOLERANCE * scale).any():
            return f"the values of '{path}' differ"
    return None


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
    size = math.prod(variable.shape)
    places = [size * k // _VALUES + size // (2 * _VALUES) for k in range(min(_VALUES, size))]
    # One value at a time: flattening a sharded or large table would copy it.
    return [
        float(f"{_value(variable, np.unravel_index(min(place, size - 1), variable.shape)):.6g}")
        for place in places
    ]


def _value(variable: keras.Variable, index: tuple[np.intp, ...]) -> float:
    value = variable.value[tuple(int(position) for position in index)]
    return float(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _is_quantized(base: keras.Model) -> bool:
    return any(getattr(c.layer, "quantization_mode", None) for c in candidates(base))


def _class_name(base: keras.Model) -> str:
    return own_class(base).__name__
