"""The name of each layer in an adapter file, and the turn from Keras axes to PEFT's matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from kerora.adapters.factorization import Factorization
from kerora.adapters.lora import EmbeddingLora, LinearLora, LoraAdapter
from kerora.adapters.targets import Candidate, candidates, sublayers
from kerora.interchange.huggingface_names import (
    HuggingFaceWeight,
    WeightKey,
    huggingface_weights,
)
from kerora.interchange.model_kinds import model_kind


@dataclasses.dataclass(frozen=True)
class NamedLayer:
    """A layer that can hold an adapter, under its name in an adapter file.

    A layer that `transformers` has several modules for is there once for each.

    Attributes:
        candidate: The layer and its Keras path.
        module: Name of its `transformers` module, or its Keras path where it has none.
        weight: Where its kernel or table lies in the Hugging Face tensor; None where it has none.
        head: Name of the module that gives the model's logits; None where none does.
    """

    candidate: Candidate
    module: str
    weight: HuggingFaceWeight | None
    head: str | None = None

    @property
    def is_embedding(self) -> bool:
        """Whether the layer is a table that is looked up."""
        return isinstance(self.candidate.layer, keras.layers.Embedding)

    @property
    def is_tied(self) -> bool:
        """Whether the layer also gives the logits."""
        return self.head is not None and bool(getattr(self.candidate.layer, "tie_weights", False))

    @property
    def outputs(self) -> slice:
        """Which of the layer's outputs the module gives."""
        return _outputs(self.weight)

    @property
    def is_part(self) -> bool:
        """Whether the module is a fused one, of which the layer is some rows."""
        rows = None if self.weight is None else self.weight.rows
        return self.weight is not None and rows is not None and rows.size < self.weight.row_count


@dataclasses.dataclass(frozen=True)
class NamedBias:
    """A bias under its name in an adapter file.

    Attributes:
        variable: The Keras variable.
        module: Name of the module that holds it.
        order: Index, in the Hugging Face vector, of each of its values.
        size: Number of values of the Hugging Face vector, which a fused bias shares with others.
        outputs: Which values of the variable these are.
    """

    variable: keras.Variable
    module: str
    order: np.ndarray
    size: int
    outputs: slice

    def values(self) -> np.ndarray:
        """Its values, float32."""
        variable = keras.ops.cast(self.variable, "float32")
        return keras.ops.convert_to_numpy(variable)[self.outputs]

    def assign(self, values: np.ndarray) -> None:
        """Replace its values; those of another name in the same variable stay."""
        everything = np.array(keras.ops.convert_to_numpy(self.variable))
        everything[self.outputs] = values
        self.variable.assign(everything)


def named_layers(model: keras.Model) -> list[NamedLayer]:
    """The layers of a model that can hold an adapter, in a fixed order."""
    weights = _weights(model)
    head = model_kind(getattr(model, "backbone", model)).head
    result = []
    for candidate in candidates(model):
        is_table = isinstance(candidate.layer, keras.layers.Embedding)
        key = (id(candidate.layer), "embeddings" if is_table else "kernel")
        for weight in _counterparts(weights, key):
            module = weight.module if weight else candidate.path
            result.append(NamedLayer(candidate, module, weight, head))
    return result


def named_biases(model: keras.Model) -> list[NamedBias]:
    """The biases of a model, in a fixed order."""
    weights = _weights(model)
    paths = {id(candidate.layer): candidate.path for candidate in candidates(model)}
    result = []
    for layer, _ in sublayers(model):
        # A normalisation's `beta` is a bias to `transformers`.
        for attribute in ("bias", "beta"):
            bias = getattr(layer, attribute, None)
            if not isinstance(bias, keras.Variable):
                continue
            for weight in _counterparts(weights, (id(layer), attribute)):
                if weight is not None or attribute == "bias":
                    result.append(_named_bias(bias, weight, paths.get(id(layer), layer.path)))
    return result


def _named_bias(variable: keras.Variable, weight: HuggingFaceWeight | None, path: str) -> NamedBias:
    if weight is not None and weight.rows is not None:
        outputs = _outputs(weight)
        return NamedBias(variable, weight.module, weight.rows, weight.row_count, outputs)
    size = int(np.prod(variable.shape))
    module = path if weight is None else weight.module
    order = np.arange(size).reshape(variable.shape)
    return NamedBias(variable, module, order, size, slice(None))


def to_peft(layer: NamedLayer, adapter: LoraAdapter) -> tuple[np.ndarray, np.ndarray]:
    """The factors of an adapter as PEFT's matrices.

    Returns:
        A as `(rank, in)` and B as `(out, rank)`, float32; an embedding's `in` is its vocabulary. In
        a part of a fused module B is zero in the rows of the others.
    """
    a, b = (
        keras.ops.convert_to_numpy(variable) for variable in (adapter.kernel_a, adapter.kernel_b)
    )
    if isinstance(adapter, EmbeddingLora):
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    assert isinstance(adapter, LinearLora)
    batch = _batch_shape(adapter.factorization)
    rank = adapter.config.rank
    a = np.swapaxes(a.reshape(*batch, -1, rank), -1, -2)
    b = np.swapaxes(b.reshape(*batch, rank, -1), -1, -2)
    if layer.weight is None:
        return np.ascontiguousarray(a), np.ascontiguousarray(b)
    columns, rows = _order(layer.weight)
    b = b[..., layer.outputs, :]
    a_matrix = np.empty_like(a)
    b_matrix = np.zeros((*b.shape[:-2], layer.weight.row_count, rank), b.dtype)
    a_matrix[..., columns] = a
    b_matrix[..., rows, :] = b
    return a_matrix, b_matrix


def from_peft(layer: NamedLayer, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's matrices with their columns and rows in the order of a layer's inputs and outputs.

    Args:
        layer: The adapted layer.
        a: PEFT's A, `(rank, in)`.
        b: PEFT's B, `(out, rank)`.
    """
    if layer.is_embedding or layer.weight is None:
        return a, b
    columns, rows = _order(layer.weight)
    return a[..., columns], b[..., rows, :]


def as_factors(
    factorization: Factorization | None, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices as the factors of an adapter, in the layer's own axes.

    Args:
        factorization: How the layer's kernel splits; None for an embedding.
        a: A as `from_peft` gives it.
        b: B as `from_peft` gives it.
    """
    if factorization is None:
        return a.T, b.T
    a = np.swapaxes(a, -1, -2).reshape(factorization.a_shape)
    b = np.swapaxes(b, -1, -2).reshape(factorization.b_shape)
    return a, b


def matrix_shapes(
    layer: NamedLayer, factorization: Factorization | None, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that PEFT's A and B of a layer must have."""
    if factorization is None:
        table = layer.candidate.layer
        return (rank, table.input_dim), (table.output_dim, rank)
    batch = _batch_shape(factorization)
    rows = factorization.output_size if layer.weight is None else layer.weight.row_count
    return (*batch, rank, factorization.contracted_size), (*batch, rows, rank)


def _weights(model: keras.Model) -> dict[WeightKey, list[HuggingFaceWeight]]:
    return huggingface_weights(getattr(model, "backbone", model))


def _counterparts(
    weights: dict[WeightKey, list[HuggingFaceWeight]], key: WeightKey
) -> Sequence[HuggingFaceWeight | None]:
    return weights.get(key) or (None,)


def _outputs(weight: HuggingFaceWeight | None) -> slice:
    return slice(None) if weight is None or weight.outputs is None else weight.outputs


def _order(weight: HuggingFaceWeight) -> tuple[np.ndarray, np.ndarray]:
    assert weight.columns is not None and weight.rows is not None
    return weight.columns.ravel(), weight.rows.ravel()


def _batch_shape(factorization: Factorization) -> tuple[int, ...]:
    # `join` is "A,B->kernel"; the axes that A and B share, the rank aside, are batch axes.
    a, b = factorization.join.split("->")[0].split(",")
    count = sum(axis in b for axis in a) - 1
    return factorization.a_shape[:count]
