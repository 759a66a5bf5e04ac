"""What JAX keeps of a decoder block of which only element-wise results are computed again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

# Attention's own results, which `attention_jax.py` makes in loops: too dear to be computed again.
ATTENTION = "kerora_attention"
_KERNELS = ("dot_product_attention", "pallas_call")
_NARROW = 16


def checkpoint_elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which keeps matrix products and attention for its backward pass, nothing else.

    Norms, rotations, activations and sums are computed again from those: for Llama's block, about
    half of what would be kept otherwise, at no cost that shows. So are products over so few
    numbers, such as an adapter's second one, that they cost little more.
    """
    policies = jax.checkpoint_policies
    products_and_attention = policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names(ATTENTION)
    )

    def kept(primitive: Any, *operands: Any, **parameters: Any) -> Any:
        if primitive.name == "dot_general" and _is_narrow(*operands[:2], **parameters):
            return False
        fused = any(name in primitive.name for name in _KERNELS)
        return fused or products_and_attention(primitive, *operands, **parameters)

    return jax.checkpoint(function, policy=kept)


def _is_narrow(left: Any, right: Any, *, dimension_numbers: Any, **_: Any) -> bool:
    """Whether a product sums over far fewer numbers than either side of its result is long."""
    (contracted, _), (batch, _) = dimension_numbers
    depth = math.prod(left.shape[axis] for axis in contracted)
    shared = depth * math.prod(left.shape[axis] for axis in batch)
    sides = math.prod(left.shape) // shared, math.prod(right.shape) // shared
    return depth * _NARROW <= min(sides)
