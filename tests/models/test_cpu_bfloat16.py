"""A bfloat16 base on a CPU multiplies in bfloat16 and is otherwise computed in float32."""

import keras
import ml_dtypes
import numpy as np
import pytest

import kerora
from kerora.models.cpu_bfloat16 import multiplies_bfloat16, product_dtype
from tests.tiny_backbones import tiny_backbone

if keras.backend.backend() != "jax":
    pytest.skip("the products are JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp
import keras_hub

from benchmarks.compiled_step import compile_train_step
from kerora.models.cpu_bfloat16_jax import product

KERNELS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
TOKENS = np.random.default_rng(0).integers(1, 50, (2, 32)).astype("int32")
BATCH = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
CASES = [
    ("...i,io->...o", (2, 3, 6), (6, 5)),
    ("btd,ndh->btnh", (2, 3, 6), (4, 6, 5)),
    ("btnh,nhd->btd", (2, 3, 4, 5), (4, 5, 6)),
]


def rounded(x):
    return np.asarray(x, ml_dtypes.bfloat16).astype("float64")


@pytest.mark.parametrize(("equation", "x_shape", "kernel_shape"), CASES)
def test_product_and_gradients_are_those_of_rounded_operands(equation, x_shape, kernel_shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    plain = equation.replace("...", "ab")
    of_x, of_kernel, of_y = plain.replace("->", ",").split(",")
    y = np.einsum(plain, rounded(x), rounded(kernel))
    dy = rng.normal(size=y.shape)

    actual, gradients = jax.vjp(
        lambda x, kernel: product(equation, x, kernel),
        jnp.asarray(x, "float32"),
        jnp.asarray(kernel, "bfloat16"),
    )
    dx, d_kernel = gradients(jnp.asarray(dy, "float32"))

    assert (actual.dtype, dx.dtype, d_kernel.dtype) == ("float32", "float32", "bfloat16")
    np.testing.assert_allclose(actual, y, atol=1e-5)
    expected = np.einsum(f"{of_y},{of_kernel}->{of_x}", rounded(dy), rounded(kernel))
    np.testing.assert_allclose(dx, expected, atol=1e-5)
    expected = np.einsum(f"{of_x},{of_y}->{of_kernel}", rounded(x), rounded(dy))
    np.testing.assert_allclose(np.asarray(d_kernel, "float32"), expected, rtol=1e-2, atol=1e-2)


def causal_lm(dtype, family="llama", **overrides):
    backbone = tiny_backbone(family, dtype, **overrides)
    name = type(backbone).__name__.replace("Backbone", "CausalLM")
    return getattr(keras_hub.models, name)(backbone=backbone, preprocessor=None)


def logits_of(model):
    return np.asarray(model(BATCH), "float32")


def with_weights_of(model, source):
    for variable, other in zip(model.backbone.weights, source.backbone.weights, strict=True):
        variable.assign(keras.ops.cast(other, variable.dtype))
    return model


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "qwen3"])
def test_logits_are_nearer_to_float32_than_half_a_precision_gives(family):
    half = causal_lm("bfloat16", family)
    exact = with_weights_of(causal_lm("float32", family), half)
    adapted = kerora.adapt(with_weights_of(causal_lm("bfloat16", family), half))

    logits = logits_of(exact)
    error, of_half = (np.square(logits_of(m) - logits).mean() for m in (adapted, half))
    assert 0 < error < 0.5 * of_half


def test_no_step_holds_the_table_in_float32():
    vocabulary = 300_000
    model = kerora.adapt(causal_lm("bfloat16", "gemma", vocabulary_size=vocabulary))
    model.backbone.enable_lora(2, targets="all-linear")
    labels = (TOKENS, np.ones(TOKENS.shape, "float32"))
    memory = compile_train_step(model, (BATCH, *labels)).memory_analysis()
    assert memory.temp_size_in_bytes < vocabulary * model.backbone.hidden_dim * 4 * 0.75


def test_adapters_train_in_float32_and_weights_stay_as_they_are():
    model = kerora.adapt(causal_lm("bfloat16"))
    model.backbone.enable_lora(2)
    model.compile(keras.optimizers.Adam(0.01))
    before = [np.asarray(v, "f4") for v in model.backbone.non_trainable_weights]
    weights = np.ones(TOKENS.shape, "float32")
    losses = [float(model.train_on_batch(BATCH, TOKENS, weights)[0]) for _ in range(20)]

    assert losses[-1] < losses[0] - 0.05
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert {v.dtype for v in model.backbone.non_trainable_weights} == {"bfloat16"}
    for old, new in zip(before, model.backbone.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new, "f4"))


def test_all_weights_can_be_trained():
    model = kerora.adapt(causal_lm("bfloat16"))
    model.trainable = True
    model.compile(keras.optimizers.SGD(1.0))
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    before = [np.asarray(v, "f4") for v in kernels]
    model.train_on_batch(BATCH, TOKENS, np.ones(TOKENS.shape, "float32"))
    assert all(np.any(old != np.asarray(v, "f4")) for old, v in zip(before, kernels, strict=True))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_such_a_base_can_be_quantised(mode):
    model = kerora.adapt(causal_lm("bfloat16"))
    exact = with_weights_of(causal_lm("float32"), model)
    exact.quantize(mode)
    model.quantize(mode)
    layers = [layer for layer in model.backbone._flatten_layers() if isinstance(layer, KERNELS)]
    assert {layer.quantization_mode for layer in layers} == {mode}
    model.backbone.enable_lora(2)
    quantised, expected = logits_of(model), logits_of(exact)
    assert np.corrcoef(quantised.ravel(), expected.ravel())[0, 1] > 0.95


def test_a_saved_model_computes_the_same(tmp_path):
    model = kerora.from_preset("tiny_gemma", dtype="bfloat16")
    assert product_dtype(model.backbone.token_embedding) == "bfloat16"
    model.backbone.enable_lora(2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert product_dtype(again.backbone.token_embedding) == "bfloat16"
    np.testing.assert_array_equal(logits_of(again), logits_of(model))


def test_generated_text_is_that_of_float32():
    answers = [
        kerora.from_preset("tiny_gemma", dtype=dtype).generate("The cat", max_length=24)
        for dtype in ("float32", "bfloat16")
    ]
    assert answers[0] == answers[1]


def test_the_processor_tells_whether_it_multiplies_bfloat16(monkeypatch):
    for flags, known in (("avx2 avx512_bf16", True), ("avx2 avx512f", False)):
        monkeypatch.setattr("pathlib.Path.read_text", lambda self, flags=flags: f"flags : {flags}")
        assert multiplies_bfloat16() is known
