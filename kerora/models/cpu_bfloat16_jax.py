"""JAX's product of an activation and a bfloat16 kernel: operands in bfloat16, sums in float32.

XLA for the CPU has a fast product of two bfloat16 arrays only where the result is float32, in all
three of the products here; what JAX derives of itself would multiply a float32 gradient.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kerora.adapters.einsum_axes import axes, letters_for_ellipsis


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`einsum(equation, x, kernel)` of a float32 `x`, rounded to the kernel's type, as float32."""
    return _einsum(equation, x.astype(kernel.dtype), kernel)


def _forward(equation: str, x: jax.Array, kernel: jax.Array) -> Any:
    return _einsum(equation, x.astype(kernel.dtype), kernel), (x, kernel)


def _backward(equation: str, saved: Any, dy: jax.Array) -> Any:
    x, kernel = saved
    of_x, of_kernel, of_y = axes(equation, letters_for_ellipsis(equation, x.ndim, equation))
    dy = dy.astype(kernel.dtype)
    dx = _einsum(f"{of_y},{of_kernel}->{of_x}", dy, kernel)
    d_kernel = _einsum(f"{of_x},{of_y}->{of_kernel}", x.astype(kernel.dtype), dy)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)
