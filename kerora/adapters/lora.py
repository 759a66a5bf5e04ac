"""The low-rank adapter as a Keras layer: factors A and B, and the delta they add."""

from __future__ import annotations

import math
import random

import keras
import numpy as np
from keras import ops

from kerora.adapters.config import LoraConfig
from kerora.adapters.factorization import Factorization, factorize


class LoraAdapter(keras.layers.Layer):
    """Two float32 factors and what they add to the layer that they adapt.

    A starts random and B zero, so that the first forward pass is the base's own. The products run
    in the compute type of the adapted layer.

    Args:
        config: Rank, scale and dropout.
        compute_dtype: Type of the products, for example `"bfloat16"`.
        name: Name of the layer.
    """

    def __init__(self, config: LoraConfig, compute_dtype: str, name: str) -> None:
        policy = "float32" if compute_dtype == "float32" else f"mixed_{compute_dtype}"
        super().__init__(name=name, dtype=policy)
        self.config = config
        # With a seed of its own, or PyTorch would draw from its global generator, which no
        # checkpoint of Keras holds.
        seed = random.randint(1, 10**9)
        self.dropout = keras.layers.Dropout(config.dropout, seed=seed) if config.dropout else None

    def _add_factors(
        self, a_shape: tuple[int, ...], b_shape: tuple[int, ...], a_values: np.ndarray
    ) -> None:
        self.kernel_a = self.add_weight(
            name="kernel_a",
            shape=a_shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(a_values, dtype),
        )
        self.kernel_b = self.add_weight(name="kernel_b", shape=b_shape, initializer="zeros")

    def save_own_variables(self, store) -> None:
        super().save_own_variables(store)
        # Keras keeps no random state in weight files; training is to go on with the same noise.
        if self.dropout is not None:
            store["dropout_seed"] = ops.convert_to_numpy(self.dropout.seed_generator.state)

    def load_own_variables(self, store) -> None:
        self.kernel_a.assign(store["0"])
        self.kernel_b.assign(store["1"])
        if self.dropout is not None and "dropout_seed" in store:
            self.dropout.seed_generator.state.assign(store["dropout_seed"])

    def parameter_count(self) -> int:
        """Number of values in A and B."""
        return math.prod(self.kernel_a.shape) + math.prod(self.kernel_b.shape)

    def delta(self):
        """The tensor `A·B · alpha / rank` in the layout of the adapted kernel.

        Which product that is depends on the kernel, so only subclasses have it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it adds to a kernel.")


class LinearLora(LoraAdapter):
    """Adapter of a Dense or EinsumDense kernel: `(x·A)·B · alpha / rank`.

    A is drawn uniformly from ±1/√fan-in (the Kaiming initialisation with a=√5 of the reference
    implementation).

    Args:
        config: Rank, scale and dropout.
        equation: Einsum equation of the adapted layer.
        kernel_shape: Shape of the adapted kernel.
        compute_dtype: Type of the products.
        name: Name of the layer.
    """

    def __init__(
        self,
        config: LoraConfig,
        equation: str,
        kernel_shape: tuple[int, ...],
        compute_dtype: str,
        name: str,
    ) -> None:
        super().__init__(config, compute_dtype, name)
        self.factorization: Factorization = factorize(equation, kernel_shape, config.rank)

    def build(self, input_shape: object = None) -> None:
        bound = 1 / math.sqrt(self.factorization.contracted_size)
        shape = self.factorization.a_shape
        values = _random_generator().uniform(-bound, bound, shape).astype("float32")
        self._add_factors(shape, self.factorization.b_shape, values)
        self.built = True

    def call(self, inputs):
        if self.dropout is not None:
            inputs = self.dropout(inputs)
        return _low_rank_product(
            self.factorization, inputs, self.kernel_a, self.kernel_b * self.config.scale
        )

    def delta(self):
        return ops.einsum(self.factorization.join, self.kernel_a * self.config.scale, self.kernel_b)


class EmbeddingLora(LoraAdapter):
    """Adapter of an embedding table of shape `(vocabulary, width)`.

    A is `(vocabulary, rank)`, drawn from a standard normal, and B is `(rank, width)`. A lookup
    adds `A[ids]·B`; tied logits add `(h·Bᵀ)·Aᵀ`, so that both read the same table.

    Args:
        config: Rank, scale and dropout (dropout acts on the looked-up rows of A).
        input_dim: Size of the vocabulary.
        output_dim: Width of the embedding.
        compute_dtype: Type of the products.
        name: Name of the layer.
    """

    def __init__(
        self, config: LoraConfig, input_dim: int, output_dim: int, compute_dtype: str, name: str
    ) -> None:
        super().__init__(config, compute_dtype, name)
        self.input_dim = input_dim
        self.output_dim = output_dim

    def build(self, input_shape: object = None) -> None:
        shape = (self.input_dim, self.config.rank)
        values = _random_generator().standard_normal(shape).astype("float32")
        self._add_factors(shape, (self.config.rank, self.output_dim), values)
        self.built = True

    def call(self, inputs, reverse: bool = False):
        if reverse:
            narrow = ops.matmul(inputs, ops.transpose(self.kernel_b)) * self.config.scale
            return ops.matmul(narrow, ops.transpose(self.kernel_a))
        rows = ops.take(self.kernel_a, ops.cast(inputs, "int32"), axis=0)
        if self.dropout is not None:
            rows = self.dropout(rows)
        return ops.matmul(rows * self.config.scale, self.kernel_b)

    def delta(self):
        return ops.matmul(self.kernel_a * self.config.scale, self.kernel_b)


def _low_rank_product(factorization: Factorization, inputs, kernel_a, kernel_b):
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "cpu":
            from kerora.adapters.low_rank_product_jax import low_rank_product

            kernel_a = ops.convert_to_tensor(kernel_a)
            return low_rank_product(
                factorization.down, factorization.up, inputs, kernel_a, kernel_b
            )
    narrow = ops.einsum(factorization.down, inputs, kernel_a)
    return ops.einsum(factorization.up, narrow, kernel_b)


def _random_generator() -> np.random.Generator:
    # Python's own generator is what `keras.utils.set_random_seed` seeds, and NumPy draws the same
    # numbers on every backend.
    return np.random.default_rng(random.randint(1, 10**9))
