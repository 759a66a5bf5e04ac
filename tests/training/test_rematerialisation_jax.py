"""Which results a checkpointed function keeps."""

import keras
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone is told what to keep", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kerora.training.rematerialisation_jax import ATTENTION, checkpoint_elementwise


def kept(function, *arguments):
    """Shapes of what the backward pass holds beside the arguments, in order of size."""
    _, backward = jax.vjp(checkpoint_elementwise(function), *arguments)
    given = {id(argument) for argument in arguments}
    shapes = [leaf.shape for leaf in jax.tree.leaves(backward) if id(leaf) not in given]
    return sorted(shapes)


def test_products_are_kept_and_what_is_made_of_them_is_not():
    x, w, v = jnp.ones((128, 64)), jnp.ones((64, 96)), jnp.ones((96, 32))

    def block(x, w, v):
        return jnp.sin(jnp.tanh(jnp.exp(jnp.cos(x) @ w)) @ v)

    assert kept(block, x, w, v) == [(128, 32), (128, 96)]


def test_what_attention_names_is_kept():
    x = jnp.ones((8, 4))
    assert kept(lambda x: jnp.sin(checkpoint_name(jnp.tanh(x), ATTENTION)), x) == [(8, 4)]


def test_a_narrow_product_is_made_again_and_its_narrow_side_kept():
    x, w = jnp.ones((128, 64)), jnp.ones((64, 96))
    a, b = jnp.ones((64, 2)), jnp.ones((2, 96))

    def adapted(x, w, a, b):
        return jnp.tanh(x @ w + (x @ a) @ b)

    assert kept(adapted, x, w, a, b) == [(128, 2), (128, 96)]
