"""JAX's form of the objective: the block passes under a `custom_vjp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kerora.training.objective_blocks import (
    ACCELERATOR_BLOCKING,
    CPU_BLOCKING,
    BlockPasses,
)
from kerora.training.objective_head import Table

if TYPE_CHECKING:
    from kerora.training.objective import TokenObjective


def token_sums(
    features: tuple[jax.Array, ...],
    tables: tuple[Table, ...],
    labels: jax.Array,
    weights: jax.Array,
    vocabulary_size: int,
    objective: TokenObjective,
    gradient: bool,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of the loss and of right predictions, see `objective.next_token_loss`."""
    del gradient  # The undifferentiated form runs of itself where nothing is differentiated.
    blocking = CPU_BLOCKING if jax.default_backend() == "cpu" else ACCELERATOR_BLOCKING
    passes = BlockPasses(objective, vocabulary_size, blocking, _product)
    trains = any(table.trainable for table in tables)

    def run(features: Any, arrays: Any, labels: Any, weights: Any, emits: bool) -> Any:
        tokens = passes.supervised_first(features, labels, weights)
        result = passes.forward(tokens, _with(tables, arrays), emits)
        return (result.loss_sum, result.correct_sum), tokens, result

    @jax.custom_vjp
    def sums(features: Any, arrays: Any, labels: Any, weights: Any) -> Any:
        return run(features, arrays, labels, weights, emits=False)[0]

    def forward(features: Any, arrays: Any, labels: Any, weights: Any) -> Any:
        result, tokens, full = run(features, arrays, labels, weights, emits=not trains)
        if trains:
            return result, (tokens, arrays, full.log_partition)
        return result, tuple(jnp.take(g, tokens.position, axis=0) for g in full.gradients)

    def backward(saved: Any, gradients: Any) -> Any:
        loss_gradient = gradients[0]
        if not trains:
            of_features = tuple((g * loss_gradient).astype(g.dtype) for g in saved)
            return of_features, None, None, None
        tokens, arrays, log_partition = saved
        of_features, of_tables = passes.backward(
            tokens, _with(tables, arrays), log_partition, loss_gradient
        )
        of_arrays = tuple(
            (g, *([None] * (len(a) - 1))) for g, a in zip(of_tables, arrays, strict=True)
        )
        return (
            tuple(jnp.take(g, tokens.position, axis=0) for g in of_features),
            of_arrays,
            None,
            None,
        )

    sums.defvjp(forward, backward)
    return sums(features, tuple(table.arrays for table in tables), labels, weights)


def _with(tables: tuple[Table, ...], arrays: Any) -> tuple[Table, ...]:
    return tuple(t.with_arrays(a) for t, a in zip(tables, arrays, strict=True))


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32
    )
