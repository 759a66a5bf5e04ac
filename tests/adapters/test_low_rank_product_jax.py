"""The product of x, A and B has the values and gradients of its formula, without copies."""

import keras
import numpy as np
import pytest

from kerora.adapters.factorization import factorize

if keras.backend.backend() != "jax":
    pytest.skip("the gradient is JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp

from kerora.adapters.low_rank_product_jax import low_rank_product

CASES = [
    ("...i,io->...o", (6, 10), (7, 6)),
    ("...i,io->...o", (6, 10), (2, 3, 4, 6)),
    ("btd,ndh->btnh", (2, 6, 5), (3, 4, 6)),
    ("btnh,nhd->btd", (2, 5, 6), (3, 4, 2, 5)),
    ("ebd,edf->ebf", (3, 6, 8), (3, 4, 6)),
    ("btd,df->btf", (6, 8), (3, 4, 6)),
]


@pytest.mark.parametrize(("equation", "kernel_shape", "x_shape"), CASES)
def test_values_and_gradients_are_those_of_the_delta(equation, kernel_shape, x_shape):
    f = factorize(equation, kernel_shape, rank=3)
    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=s), "float32") for s in (x_shape, f.a_shape, f.b_shape))
    weights = jnp.einsum(equation, x, jnp.einsum(f.join, a, b)) + 1.0

    def by_delta(x, a, b):
        y = jnp.einsum(equation, x, jnp.einsum(f.join, a, b))
        return jnp.sum(y * weights), y

    def by_factors(x, a, b):
        y = low_rank_product(f.down, f.up, x, a, b)
        return jnp.sum(y * weights), y

    of_delta, of_factors = (
        jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))(x, a, b)
        for function in (by_delta, by_factors)
    )
    for actual, expected in zip(
        jax.tree.leaves(of_factors), jax.tree.leaves(of_delta), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_gradients_have_the_type_of_what_they_belong_to():
    x, a, b = (
        jnp.ones((4, 6), "bfloat16"),
        jnp.ones((6, 2), "bfloat16"),
        jnp.ones((2, 5), "bfloat16"),
    )
    f = factorize("ab,bc->ac", (6, 5), rank=2)
    gradients = jax.grad(lambda *args: low_rank_product(f.down, f.up, *args).sum(), (0, 1, 2))(
        x, a, b
    )
    assert [g.dtype for g in gradients] == ["bfloat16"] * 3


def test_no_wide_matrix_is_transposed():
    f = factorize("...i,io->...o", (576, 192), rank=8)
    shapes = (2, 512, 576), f.a_shape, f.b_shape, (2, 512, 192)
    x, a, b, dy = (jnp.ones(shape) for shape in shapes)

    def gradients(product):
        step = jax.jit(lambda x, a, b, dy: jax.vjp(lambda a, b: product(x, a, b), a, b)[1](dy))
        return step.lower(x, a, b, dy).compile().as_text()

    def stock(x, a, b):
        return jnp.einsum(f.up, jnp.einsum(f.down, x, a), b)

    assert "f32[192,1024]" in gradients(stock)
    text = gradients(lambda x, a, b: low_rank_product(f.down, f.up, x, a, b))
    assert "f32[576,1024]" not in text
    assert "f32[192,1024]" not in text
