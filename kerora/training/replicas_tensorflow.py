"""A step's part in one replica of a `tf.distribute` strategy, whose gradients are summed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kerora.training.replicas import replicated


@contextlib.contextmanager
def in_replica() -> Iterator[None]:
    """While a step is traced, or runs eagerly: its sums over tokens are those of all replicas."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if several and not tf.distribute.in_cross_replica_context():
        with replicated(_total):
            yield
    else:
        yield


def _total(value: Any) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(value))
