"""The matrix peak of this machine, measured: the fastest of large products.

    python -m benchmarks.peak [TYPE]

prints the type (by default the one that the machine multiplies fastest) and its FLOP/s.
"""

from __future__ import annotations

import os
import sys
import time


def quickest_dtype() -> str:
    """bfloat16 on an accelerator and on a CPU that multiplies it, else float32."""
    from kerora.models.cpu_bfloat16 import multiplies_bfloat16, on_cpu

    return "bfloat16" if multiplies_bfloat16() or not on_cpu() else "float32"


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


def main() -> None:
    os.environ["KERAS_BACKEND"] = "jax"
    dtype = sys.argv[1] if len(sys.argv) > 1 else quickest_dtype()
    print(dtype, matrix_peak(dtype))


if __name__ == "__main__":
    main()
