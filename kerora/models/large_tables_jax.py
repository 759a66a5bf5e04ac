"""Filling a large array in place on JAX, whose arrays are otherwise made whole."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import numpy as np


def filled(array: jax.Array, blocks: Iterable[tuple[int, np.ndarray]]) -> jax.Array:
    """An array with its rows replaced by blocks, each with the row at which it begins.

    The array itself is used up.
    """
    for start, block in blocks:
        # Blocks that wait for their turn would gather in memory.
        array = _with_rows(array, block, np.int32(start)).block_until_ready()
    return array


@functools.partial(jax.jit, donate_argnums=0)
def _with_rows(array: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    beginning = (start,) + (0,) * (array.ndim - 1)
    return jax.lax.dynamic_update_slice(array, block.astype(array.dtype), beginning)
