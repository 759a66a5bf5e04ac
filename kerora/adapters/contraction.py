"""The cheaper of two ways to compute an adapted product, from its static shapes.

With t tokens, fan-in i, fan-out o and rank r, in multiplications of one training step with the base
frozen (as RunLoRA counts them, https://arxiv.org/abs/2312.03415):

- factored, `x·W + (x·A)·B`: `2·t·i·o` for the base product and the gradient of x, and
  `3·t·r·(i + o)` for x·A·B and the gradients of x, A and B through it;
- merged, `x·(W + A·B)`: `3·t·i·o` for the product and the gradients of x and of the sum, and
  `3·r·i·o` for the sum and what its gradient gives A and B.

At usual ranks the factored form is far cheaper and never holds the delta. The merged form wins when
the rank comes near a third of the kernel's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from kerora.adapters.lora import LoraAdapter


def factored_cost(tokens: int, fan_in: int, fan_out: int, rank: int) -> int:
    """Multiplications of a training step of `x·W + (x·A)·B`."""
    return 2 * tokens * fan_in * fan_out + 3 * tokens * rank * (fan_in + fan_out)


def merged_cost(tokens: int, fan_in: int, fan_out: int, rank: int) -> int:
    """Multiplications of a training step of `x·(W + A·B)`."""
    return 3 * tokens * fan_in * fan_out + 3 * rank * fan_in * fan_out


def merging_is_cheaper(
    layer: keras.layers.Layer, adapters: Sequence[LoraAdapter], inputs: keras.KerasTensor
) -> bool:
    """Whether a Dense or EinsumDense should multiply its inputs by `W + A·B`.

    Only in float32, because half a precision would round small deltas away in the sum, and only
    where it means the same: with no dropout on the adapters' inputs and no quantised kernel.
    """
    if not adapters or layer.quantization_mode is not None:
        return False
    if {layer.compute_dtype, layer.variable_dtype} != {"float32"}:
        return False
    if any(adapter.dropout is not None for adapter in adapters) or None in inputs.shape:
        return False
    factorization = adapters[0].factorization
    fan_in, fan_out = factorization.contracted_size, factorization.output_size
    batched = math.prod(layer.kernel.shape) // (fan_in * fan_out)
    tokens = math.prod(inputs.shape) // (fan_in * batched)
    rank = sum(adapter.config.rank for adapter in adapters)
    shape = (tokens, fan_in, fan_out, rank)
    return merged_cost(*shape) < factored_cost(*shape)
