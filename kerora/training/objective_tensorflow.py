"""TensorFlow's form of the objective: the block passes under a `custom_gradient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from kerora.training.objective_blocks import (
    ACCELERATOR_BLOCKING,
    CPU_BLOCKING,
    BlockPasses,
)
from kerora.training.objective_head import Table

if TYPE_CHECKING:
    from kerora.training.objective import TokenObjective


def token_sums(
    features: tuple[tf.Tensor, ...],
    tables: tuple[Table, ...],
    labels: tf.Tensor,
    weights: tf.Tensor,
    vocabulary_size: int,
    objective: TokenObjective,
    gradient: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Weighted sums of the loss and of right predictions, see `objective.next_token_loss`."""
    blocking = ACCELERATOR_BLOCKING if tf.config.list_physical_devices("GPU") else CPU_BLOCKING
    passes = BlockPasses(objective, vocabulary_size, blocking, _product)
    trains = any(table.trainable for table in tables)
    count = len(features)

    @tf.custom_gradient
    def sums(*tensors: tf.Tensor) -> Any:
        arrays = iter(tensors[count:])
        own = [t.with_arrays(tuple(next(arrays) for _ in t.arrays)) for t in tables]
        tokens = passes.supervised_first(tensors[:count], labels, weights)
        result = passes.forward(tokens, own, emits=gradient and not trains)

        def backward(loss_gradient: tf.Tensor, _: Any) -> list[Any]:
            of_tables: tuple[Any, ...] = (None,) * len(own)
            of_features = tuple(g * tf.cast(loss_gradient, g.dtype) for g in result.gradients)
            if trains:
                of_features, of_tables = passes.backward(
                    tokens, own, result.log_partition, loss_gradient
                )
            of_arrays = [
                g if i == 0 else None
                for g, t in zip(of_tables, own, strict=True)
                for i in range(len(t.arrays))
            ]
            return [*(tf.gather(g, tokens.position) for g in of_features), *of_arrays]

        return (result.loss_sum, result.correct_sum), backward

    # A variable would be taken for one that the function reads unseen.
    arrays = [tf.convert_to_tensor(array) for table in tables for array in table.arrays]
    return sums(*features, *arrays)


def _product(a: tf.Tensor, b: tf.Tensor, axis_a: int, axis_b: int) -> tf.Tensor:
    product = tf.matmul(a, b, transpose_a=axis_a == 0, transpose_b=axis_b == 1)
    return tf.cast(product, tf.float32)
