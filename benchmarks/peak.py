"""The matrix peak of this machine, measured: the fastest of large products."""

from __future__ import annotations

import sys
import time


def matrix_peak(dtype: str = "float32", size: int = 2048, seconds: float = 2.0) -> float:
    """FLOP/s of a square `jax` product, the best of repeats over about `seconds`."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        size = 8192
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
    # XLA for the CPU is quickest where the sums of bfloat16 stay float32.
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    multiply(a, b).block_until_ready()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        multiply(a, b).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    print(matrix_peak(*sys.argv[1:2]))
