"""Keras' own LoRA as an adapter of kerora: `.lora.h5` files, and models that have it enabled.

Keras factors the last axis of a kernel alone: for a kernel of shape `(heads, in, width)` its A is
`(heads, in, rank)` and its B `(rank, width)`, shared by the heads. The delta, as the matrix
`(in, heads * width)` that it is, has rank `heads * rank`; an adapter of that rank holds it exactly.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.adapters.config import Bias
from kerora.adapters.factorization import factorize, layer_equation, layer_kernel_shape
from kerora.adapters.host import HOST_TYPES, get_adapter
from kerora.adapters.lora import LoraAdapter
from kerora.adapters.targets import Candidate, candidates, select, sublayers
from kerora.user_warning import warn_user

_NAMES = (("lora_kernel_a", "lora_kernel_b"), ("lora_embeddings_a", "lora_embeddings_b"))


@dataclasses.dataclass(frozen=True)
class _Factors:
    """One layer's factors as kerora has them: A `(b..., i..., rank)`, B `(b..., rank, o...)`."""

    candidate: Candidate
    a: np.ndarray
    b: np.ndarray
    batch_axes: int = 0

    @property
    def rank(self) -> int:
        return self.a.shape[-1]


def load_keras_lora(
    model: keras.Model, file: str | os.PathLike[str], name: str = "default"
) -> None:
    """Add what KerasHub's `backbone.save_lora_weights` wrote to a model, as an adapter, in place.

    The delta is the file's own, at its true rank: `heads * rank` for the query and value of most
    models. The file holds no alpha (KerasHub's scale is 1), no name of its base, and no biases,
    though KerasHub trains those of the adapted layers: a warning says where that matters.

    Args:
        model: A KerasHub task or backbone of the kind that wrote the file.
        file: The `.lora.h5`.
        name: Name under which the model holds the adapter.

    Raises:
        AdapterError: If the file is missing or damaged, or does not fit the model, which is then as
            it was.

    Example:
    ```python
    load_keras_lora(model, "gemma.lora.h5")
    ```
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise AdapterError(f"There is no file '{file}'.")
    layers = _numbered_layers(getattr(model, "backbone", model))
    known = {id(candidate.layer): candidate for candidate in candidates(model)}
    try:
        with h5py.File(path, "r") as opened:
            found = _read_layers(opened, path, layers, known)
    except (OSError, KeyError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged or no `.lora.h5` file: {error}") from error
    _add(model, found, name, "none", str(path))
    with_bias = [f.candidate.path for f in found if _bias(f.candidate.layer) is not None]
    if with_bias:
        warn_user(
            f"{path} holds no biases, and KerasHub trains those of the {len(with_bias)} layers it "
            f"adapts that have one ('{with_bias[0]}'): if they were trained, the model computes "
            "something else than it did. `kerora.adapt` on the trained model itself keeps them."
        )


def has_keras_lora(model: keras.Model) -> bool:
    """Whether some layer of a model has Keras' own LoRA enabled."""
    return any(getattr(layer, "lora_enabled", False) for layer, _ in sublayers(model))


def take_over_keras_lora(model: keras.Model, name: str = "default") -> None:
    """Replace Keras' own LoRA of a model by an adapter that computes the same, in place.

    Biases of the adapted layers that Keras was training go on training (`bias="lora_only"`).

    Raises:
        AdapterError: If a layer is none that can hold an adapter. The model is then as it was.
    """
    known = {id(candidate.layer): candidate for candidate in candidates(model)}
    found = []
    for layer, _ in sublayers(model):
        if not getattr(layer, "lora_enabled", False):
            continue
        if not isinstance(layer, HOST_TYPES):
            raise AdapterError(
                f"Layer '{layer.path}' of type {type(layer).__name__} has Keras' own LoRA, which "
                "kerora cannot take over. Load the model afresh and add kerora's adapter instead."
            )
        a, b = (
            keras.ops.convert_to_numpy(getattr(layer, attribute)).astype("float32")
            for attribute in _NAMES[isinstance(layer, keras.layers.Embedding)]
        )
        scale = layer.lora_alpha / layer.lora_rank
        found.append(_standard_factors(known[id(layer)], a, b * np.float32(scale)))
    trains_bias = any(
        (bias := _bias(f.candidate.layer)) is not None and bias.trainable for f in found
    )
    _check_rank(found, "The model's own LoRA")
    for factors in found:
        _disable_keras_lora(factors.candidate.layer)
    _add(model, found, name, "lora_only" if trains_bias else "none", "The model's own LoRA")


def _numbered_layers(backbone: keras.Model) -> list[keras.layers.Layer]:
    # KerasHub numbers the layers that have weights in the order of this private method; what an
    # adapter of kerora is made of is none of them.
    inside_adapters = {
        id(part)
        for layer, _ in sublayers(backbone)
        if isinstance(layer, LoraAdapter)
        for part in (layer, *(child for child, _ in sublayers(layer)))
    }
    return [
        layer
        for layer in backbone._flatten_layers(include_self=False)
        if layer.weights and id(layer) not in inside_adapters
    ]


def _read_layers(
    opened: h5py.File,
    path: Path,
    layers: list[keras.layers.Layer],
    known: dict[int, Candidate],
) -> list[_Factors]:
    rank_values = _dataset(opened, "lora/vars/rank", path, ())
    rank = int(rank_values[()])
    if rank < 1:
        raise AdapterError(f"{path}: `rank` must be at least 1. Received: {rank}")
    numbers = [key for key in opened["lora"] if key != "vars"]
    found = []
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(layers):
            raise AdapterError(
                f"{path} adapts layer {number!r}, and this model has {len(layers)} layers with "
                "weights. Was it saved from another model?"
            )
        layer = layers[int(number)]
        if id(layer) not in known:
            raise AdapterError(
                f"{path} adapts layer {number} ('{layer.path}'), which can hold no adapter. Was "
                "it saved from another model?"
            )
        is_table = isinstance(layer, keras.layers.Embedding)
        shape = (
            (layer.input_dim, layer.output_dim) if is_table else tuple(layer_kernel_shape(layer))
        )
        a, b = (
            np.asarray(_dataset(opened, f"lora/{number}/vars/{key}", path, expected), "float32")
            for key, expected in zip(
                _NAMES[is_table], ((*shape[:-1], rank), (rank, shape[-1])), strict=True
            )
        )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AdapterError(f"{path}: the factors of layer {number} hold NaN or infinity.")
        found.append(_standard_factors(known[id(layer)], a, b))
    if not found:
        raise AdapterError(f"{path} holds no adapter.")
    return found


def _dataset(opened: h5py.File, key: str, path: Path, shape: tuple[int, ...]) -> Any:
    """A tensor of the file that is what it should be, before any of its values is read."""
    place: Any = opened
    for part in key.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            raise AdapterError(f"{path} is no `.lora.h5` file of this model: it lacks '{key}'.")
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            raise AdapterError(f"{path}: '{key}' is a link to another place.")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.dtype.kind not in "fiu":
        raise AdapterError(f"{path}: '{key}' must hold numbers.")
    if place.shape != shape:
        raise AdapterError(
            f"{path}: '{key}' must have shape {shape}. Received: {place.shape}. Was it saved from "
            "another model?"
        )
    size = math.prod(place.shape) * place.dtype.itemsize
    if place.external or place.is_virtual or place.id.get_storage_size() < size:
        raise AdapterError(f"{path}: the values of '{key}' are not stored in the file.")
    return place


def _standard_factors(candidate: Candidate, a: np.ndarray, b: np.ndarray) -> _Factors:
    """Keras' factors of one layer as kerora's, with the same product."""
    layer = candidate.layer
    if isinstance(layer, keras.layers.Embedding):
        return _Factors(candidate, a, b)
    equation = layer_equation(layer).replace(" ", "").replace("->", ",")
    inputs, kernel, outputs = equation.split(",")
    batch = [axis for axis in kernel if axis in inputs and axis in outputs]
    contracted = [axis for axis in kernel if axis in inputs and axis not in outputs]
    output = [axis for axis in kernel if axis in outputs and axis not in inputs]
    size = dict(zip(kernel, layer_kernel_shape(layer), strict=True))
    sizes = [tuple(size[axis] for axis in axes) for axes in (batch, contracted, output)]
    counts = [math.prod(axes) for axes in sizes]
    rank, last = b.shape[0], kernel[-1]
    inner = counts[2] // size[last] if last in output else counts[1] // size[last]
    if last in batch or inner * rank > min(counts[1:]):
        order = [kernel.index(axis) for axis in (*batch, *contracted, *output)]
        delta = np.matmul(a, b).transpose(order).reshape(counts)
        unit = np.eye(min(counts[1:]), dtype=a.dtype)
        left, right = (unit, delta) if counts[1] <= counts[2] else (delta, unit)
    else:
        others = [kernel.index(axis) for axis in (*batch, *contracted, *output) if axis != last]
        blocks = np.einsum("pq,rl->prql", np.eye(inner, dtype=a.dtype), b)
        a = a.transpose([*others, a.ndim - 1])
        if last in output:
            left = a.reshape(counts[0], counts[1], inner * rank)
            right = blocks.reshape(inner * rank, counts[2])
        else:
            left = blocks.transpose(2, 3, 0, 1).reshape(counts[1], inner * rank)
            right = np.swapaxes(a.reshape(counts[0], inner, counts[2], rank), -1, -2)
            right = right.reshape(counts[0], inner * rank, counts[2])
    left = np.broadcast_to(left, (counts[0], *left.shape[-2:]))
    right = np.broadcast_to(right, (counts[0], *right.shape[-2:]))
    return _Factors(
        candidate,
        left.reshape(*sizes[0], *sizes[1], left.shape[-1]),
        right.reshape(*sizes[0], right.shape[-2], *sizes[2]),
        len(batch),
    )


def _check_rank(found: list[_Factors], source: str) -> int:
    # An adapter has one rank; where layers differ, the others are filled up.
    rank = max(factors.rank for factors in found)
    for factors in found:
        layer = factors.candidate.layer
        if isinstance(layer, keras.layers.Embedding):
            limit = min(layer.input_dim, layer.output_dim)
        else:
            split = factorize(layer_equation(layer), layer_kernel_shape(layer), 1)
            limit = min(split.contracted_size, split.output_size)
        if rank > limit:
            raise AdapterError(
                f"{source} has rank {rank} in one layer (Keras' rank for each head), and an "
                f"adapter of kerora has one rank for all; '{factors.candidate.path}' holds at "
                f"most {limit}. Merge Keras' LoRA into the base (`save_weights`) instead."
            )
    return rank


def _add(model: keras.Model, found: list[_Factors], name: str, bias: Bias, source: str) -> None:
    rank = _check_rank(found, source)
    paths = tuple(factors.candidate.path for factors in found)
    chosen = {id(candidate.layer) for candidate in select(model, paths)}
    if chosen != {id(factors.candidate.layer) for factors in found}:
        raise AdapterError(f"The layers that {source} adapts cannot be told apart by their paths.")
    add_adapter(model, LoraConfig(rank=rank, alpha=rank, targets=paths, bias=bias), name)
    for factors in found:
        if not (factors.a.any() and factors.b.any()):
            # The delta is zero. Where Keras' `load_weights` left zeros in both factors, which no
            # gradient leaves again, the new adapter's own beginning takes their place.
            continue
        adapter = get_adapter(factors.candidate.layer, name)
        # What is filled up has a random A, so that it trains, and a zero B.
        a = np.array(keras.ops.convert_to_numpy(adapter.kernel_a))
        b = np.zeros(adapter.kernel_b.shape, "float32")
        a[..., : factors.rank] = factors.a
        b[(slice(None),) * factors.batch_axes + (slice(factors.rank),)] = factors.b
        adapter.kernel_a.assign(a)
        adapter.kernel_b.assign(b)


def _disable_keras_lora(layer: keras.layers.Layer) -> None:
    for name in _NAMES[isinstance(layer, keras.layers.Embedding)]:
        delattr(layer, name)
    layer.lora_enabled = False
    layer.lora_rank = layer.lora_alpha = None


def _bias(layer: keras.layers.Layer) -> keras.Variable | None:
    return getattr(layer, "bias", None)
