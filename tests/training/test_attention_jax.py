"""The blockwise and fused kernels against the softmax written out in NumPy."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("JAX's kernels", allow_module_level=True)

import jax
import jax.numpy as jnp

from kerora.training import attention_jax, attention_jax_fused

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def reference(q, k, v, ids, scale, soft_cap=None, window=None, sinks=None):
    groups = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for row, t, head in np.ndindex(q.shape[:3]):
        first = 0 if window is None else max(0, t - window + 1)
        seen = [s for s in range(first, t + 1) if ids[row, s] == ids[row, t] > 0]
        if not seen:
            continue
        scores = k[row, seen, head // groups] @ q[row, t, head] * scale
        if soft_cap is not None:
            scores = np.tanh(scores / soft_cap) * soft_cap
        weights = np.exp(scores)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
        out[row, t, head] = weights @ v[row, seen, head // groups] / total
    return out


def arrays(length, heads=4, kv_heads=2, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, length, heads, dim))
    k, v = rng.normal(size=(2, 2, length, kv_heads, dim))
    ids = np.zeros((2, length), "int32")
    # Borders inside blocks and on them, a row that ends in padding, an example of many blocks.
    for index, (start, end) in enumerate([(0, 5), (5, 16), (16, 17), (17, length)], start=1):
        ids[0, start:end] = index
    ids[1, : length - 9] = 1
    return q, k, v, ids


OPTIONS = {
    "plain": {},
    "soft cap": {"soft_cap": 1.5},
    "window": {"window": 7},
    "wide window": {"window": 19, "soft_cap": 2.0},
    "sinks": {"sinks": np.array([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_blockwise_values_equal_the_definition(name):
    q, k, v, ids = arrays(45)
    options = OPTIONS[name]
    expected = reference(q, k, v, ids, 0.4, **options)
    args = [jnp.asarray(x, "float32") for x in (q, k, v)]
    actual = attention_jax.blockwise_attention(*args, ids, scale=0.4, block=8, **options)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_blockwise_gradients_equal_those_of_the_whole_matrix(name):
    q, k, v, ids = arrays(45, seed=1)
    options = dict(OPTIONS[name])
    sinks = jnp.asarray(options.pop("sinks", np.zeros(4)), "float32")
    use_sinks = name == "sinks"
    weights = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), "float32")

    def loss(attention, **blocks):
        def of(q, k, v, sinks):
            s = sinks if use_sinks else None
            out = attention(q, k, v, ids, scale=0.4, sinks=s, **options, **blocks)
            return jnp.sum(out * weights)

        return jax.jit(jax.grad(of, argnums=(0, 1, 2, 3)), compiler_options=QUICK)

    args = [jnp.asarray(x, "float32") for x in (q, k, v)]
    expected = loss(attention_jax_fused.dense_attention)(*args, sinks)
    actual = loss(attention_jax.blockwise_attention, block=8)(*args, sinks)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


def test_blocks_that_are_ruled_out_are_not_looked_at():
    ids = arrays(48)[-1]
    shape = attention_jax._Shape(1.0, None, None, 8, 1)
    plan = attention_jax._make_plan(shape, jnp.asarray(ids))
    trips = np.asarray(plan.trips)[np.argsort(np.asarray(plan.order).reshape(-1))].reshape(2, 6)
    # Row 0: the second example reaches back one block, the last starts in the third.
    np.testing.assert_array_equal(trips[0], [1, 2, 1, 2, 3, 4])
    np.testing.assert_array_equal(trips[1], [1, 2, 3, 4, 5, 0])
    windowed = attention_jax._make_plan(shape._replace(window=3), jnp.asarray(ids))
    assert int(windowed.trips.max()) == 2


@pytest.mark.parametrize("name", ["plain", "window", "soft cap", "sinks"])
def test_splash_kernel_equals_the_whole_matrix(name):
    q, k, v, ids = arrays(128, seed=3)
    args = [jnp.asarray(x, "float32") for x in (q, k, v)]
    options = OPTIONS[name]
    if "sinks" in options:
        options = {"sinks": jnp.asarray(options["sinks"], "float32")}
    expected = attention_jax_fused.dense_attention(*args, ids, scale=0.4, **options)
    actual = attention_jax_fused.splash_attention(
        *args, jnp.asarray(ids), scale=0.4, interpret=True, **options
    )
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_splash_kernel_is_lowered_for_a_tpu():
    def loss(q, k, v, ids):
        out = attention_jax_fused.splash_attention(q, k, v, ids, scale=0.1, window=64)
        return jnp.sum(out.astype("float32"))

    shapes = [jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (6, 2, 2)] + [
        jax.ShapeDtypeStruct((2, 256), jnp.int32)
    ]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    lowered = jax.export.export(gradient, platforms=["tpu"])(*shapes).mlir_module()
    assert lowered.count("tpu_custom_call") >= 3


@pytest.mark.parametrize(
    ("length", "width", "capability", "fits"),
    [
        (512, 64, "8.0", True),
        (512, 64, "12.0", True),
        (511, 64, "8.0", False),
        (512, 60, "8.0", False),
        (512, 136, "8.0", False),
        (512, 64, "7.5", False),
        (512, 64, "gfx90a", False),
    ],
)
def test_what_cudnn_refuses_is_not_given_to_it(length, width, capability, fits):
    query = jax.ShapeDtypeStruct((2, length, 4, width), "bfloat16")
    assert attention_jax_fused.cudnn_fits(query, None, None, capability) == fits
