"""Rematerialisation on JAX: one trace for layers that are alike, and what is kept of each.

Tracing a block takes JAX and Keras a third of a second, and differentiating the trace as long.
Blocks that compute the same are traced once, with their variables' values as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
from keras.src.backend import AutocastScope, get_stateless_scope

from kerora.training.alike_layers_jax import computation
from kerora.training.attention import of_forward_pass

# Attention's own results, which `attention_jax.py` makes in loops: too dear to be computed again.
ATTENTION = "kerora_attention"
_KERNELS = ("dot_product_attention", "pallas_call")
_NARROW = 16


def traced_once(
    run: Callable[..., Any], layers: Sequence[Any], rest: Any, policy: str
) -> Callable[..., Any]:
    """`run` under a checkpoint, traced at its first call within a step's forward pass.

    Its second run draws the random numbers that its first one drew.

    Args:
        run: Calls `layers` with tensors.
        layers: One or several that are computed again together.
        rest: What else `run` calls them with.
        policy: As in `rematerialise`.
    """
    kept, key = of_forward_pass(), (policy, computation(layers, rest))
    if key not in kept:
        checkpoint = checkpoint_elementwise if policy == "elementwise" else keras.remat
        kept[key] = checkpoint(_pure(run, layers))
    function = kept[key]

    def call(*tensors: Any) -> Any:
        variables = _variables(layers)
        with AutocastScope(None):
            values = [variable.value for variable in variables]
        y, states, losses = function(tensors, values)
        for place, state in states.items():
            variables[place].assign(state)
        for loss in losses:
            layers[0].add_loss(loss)
        return y

    return call


def _pure(run: Callable[..., Any], layers: Sequence[Any]) -> Callable[..., Any]:
    """`run` as a function of tensors and values, which returns all that it changes."""
    variables = _variables(layers)

    def pure(tensors: Sequence[Any], values: Sequence[Any]) -> Any:
        outer = get_stateless_scope()
        scope = keras.StatelessScope(collect_losses=True, initialize_variables=False)
        if outer is not None:
            scope.state_mapping.update(outer.state_mapping)
        given = {id(variable): value for variable, value in zip(variables, values, strict=True)}
        scope.state_mapping.update(given)
        with scope:
            y = run(*tensors)
        states = {
            place: scope.get_current_value(variable)
            for place, variable in enumerate(variables)
            if scope.get_current_value(variable) is not given[id(variable)]
        }
        return y, states, scope.losses

    return pure


def _variables(layers: Sequence[Any]) -> list[keras.Variable]:
    return [variable for layer in layers for variable in layer.variables]


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
