"""The loss from hidden states against the plain one, on whole logits."""

import keras
import numpy as np
import pytest
from keras import ops

from kerora.adapters import LoraConfig
from kerora.adapters.host import attach
from kerora.training.losses import TokenLoss
from kerora.training.objective import Head, next_token_loss

V, D, B, S = 403, 24, 3, 50
BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks small enough that the loops turn several times."""
    if BACKEND == "torch":
        from kerora.training import objective_torch

        monkeypatch.setattr(objective_torch, "CPU_BLOCK", (40, 100))
        return
    import importlib

    from kerora.training.objective_blocks import Blocking

    module = importlib.import_module(f"kerora.training.objective_{BACKEND}")
    monkeypatch.setattr(module, "CPU_BLOCKING", Blocking(chunk=32, remainder=8, block=100))


def make_layer(dtype="float32", **kwargs):
    layer = keras.layers.ReversibleEmbedding(V, D, dtype=dtype, **kwargs)
    layer.build()
    rng = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    layer.trainable = False
    return layer


def make_batch(seed=0, supervised=0.6):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, S, D)).astype("float32")
    labels = rng.integers(0, V, (B, S)).astype("int32")
    weights = rng.uniform(0.5, 2, (B, S)) * (rng.uniform(size=(B, S)) < supervised)
    return hidden, labels, weights.astype("float32")


def ours(layer, labels, weights, **options):
    labels, weights = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights)
    return lambda hidden: next_token_loss(hidden, labels, weights, Head(layer), **options).loss_sum


def plain(layer, labels, weights, **options):
    loss = TokenLoss(reduction="sum", **options)
    labels, weights = ops.convert_to_tensor(labels), ops.convert_to_tensor(weights)

    def of_hidden(hidden):
        logits = ops.cast(layer(ops.cast(hidden, layer.compute_dtype), reverse=True), "float32")
        return loss(labels, logits, weights)

    return of_hidden


def value_and_gradients(function, hidden, variables=(), compiled=True):
    """`function(hidden)` and its gradients by `hidden` and by the variables, as NumPy arrays."""
    if BACKEND == "jax":
        import jax

        def stateless(hidden, values):
            with keras.StatelessScope(list(zip(variables, values, strict=True))):
                return function(hidden)

        differentiated = jax.value_and_grad(stateless, (0, 1))
        differentiated = jax.jit(differentiated) if compiled else differentiated
        values = [v.value for v in variables]
        loss, (of_hidden, of_values) = differentiated(ops.convert_to_tensor(hidden), values)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        def differentiated(hidden):
            with tf.GradientTape() as tape:
                tape.watch(hidden)
                loss = function(hidden)
            return loss, tape.gradient(loss, [hidden, *(v.value for v in variables)])

        differentiated = (
            tf.function(differentiated, jit_compile=True) if compiled else differentiated
        )
        loss, (of_hidden, *of_values) = differentiated(tf.constant(hidden))
    else:
        hidden = ops.convert_to_tensor(hidden).requires_grad_()
        for variable in variables:
            variable.value.grad = None
        loss = function(hidden)
        loss.backward()
        of_hidden, of_values = hidden.grad, [v.value.grad for v in variables]
    return [np.array(ops.convert_to_numpy(x), "float64") for x in (loss, of_hidden, *of_values)]


def assert_equals_plain(layer, batch, variables=(), **options):
    hidden, labels, weights = batch
    got = value_and_gradients(ours(layer, labels, weights, **options), hidden, variables)
    function = plain(layer, labels, weights, **options)
    assert_same(got, value_and_gradients(function, hidden, variables, compiled=False))
    return got


def assert_same(got, expected, tolerance=1e-5):
    for g, e in zip(got, expected, strict=True):
        assert np.abs(g - e).max() <= tolerance * np.abs(e).max() + 1e-12


CASES = [
    ({}, {}),
    ({"tie_weights": False}, {"label_smoothing": 0.1}),
    ({}, {"label_smoothing": 0.2, "z_loss": 0.003}),
    ({"logit_soft_cap": 5.0}, {}),
    ({"tie_weights": False, "logit_soft_cap": 3.0}, {"label_smoothing": 0.1, "z_loss": 0.01}),
]


@pytest.mark.parametrize(("kwargs", "options"), CASES)
def test_frozen_head_equals_plain_loss(kwargs, options):
    batch = make_batch()
    got = assert_equals_plain(make_layer(**kwargs), batch, **options)
    unsupervised = got[1][batch[2] == 0]
    assert len(unsupervised) and not unsupervised.any()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("shape", [(B, S), (1, 20)])
def test_any_number_of_supervised_tokens(shape, trainable):
    layer = make_layer()
    layer.trainable = trainable
    rows, length = shape
    hidden, labels, _ = (part[:rows, :length] for part in make_batch())
    size = rows * length
    for count in (8, 25, 57, size):
        if count <= size:
            order = np.random.default_rng(count).permutation(size).reshape(shape)
            weights = np.where(order < count, 0.5 + order / size, 0).astype("float32")
            variables = [layer.embeddings] if trainable else []
            assert_equals_plain(layer, (hidden, labels, weights), variables)


@pytest.mark.parametrize(("kwargs", "options"), CASES)
def test_trainable_head_equals_plain_loss(kwargs, options):
    layer = make_layer(**kwargs)
    layer.trainable = True
    kernel = layer.embeddings if layer.tie_weights else layer.reverse_embeddings
    assert_equals_plain(layer, make_batch(), [kernel], **options)


@pytest.mark.parametrize("kwargs", [{}, {"logit_soft_cap": 5.0}])
def test_adapter_on_the_embedding(kwargs):
    layer = make_layer(**kwargs)
    adapter = attach(layer, LoraConfig(rank=3, alpha=6), "default", "token_embedding")
    adapter.kernel_b.assign(np.random.default_rng(2).normal(size=(3, D)))
    batch = make_batch()
    got = assert_equals_plain(layer, batch, [adapter.kernel_a, adapter.kernel_b])
    assert all(value.any() for value in got)
    layer.active_adapters = ()
    assert not np.allclose(assert_equals_plain(layer, batch)[0], got[0], rtol=1e-3)


def test_sums_of_weights_and_of_right_predictions():
    layer = make_layer()
    hidden, labels, weights = make_batch()
    logits = hidden @ ops.convert_to_numpy(layer.embeddings).T
    labels[:, ::2] = logits.argmax(-1)[:, ::2]
    sums = next_token_loss(hidden, labels, weights, Head(layer), gradient=False)
    right = logits.argmax(-1) == labels
    assert 0.3 < right.mean() < 0.7
    np.testing.assert_allclose(sums.correct_sum, (weights * right).sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.weight_sum, weights.sum(), rtol=1e-6)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_batch_without_supervised_tokens(trainable):
    layer = make_layer()
    layer.trainable = trainable
    variables = [layer.embeddings] if trainable else []
    hidden, labels, weights = make_batch()
    function = ours(layer, labels * 0 + V + 7, weights * 0)
    for value in value_and_gradients(function, hidden, variables):
        assert not value.any()


def test_confident_predictions_keep_their_digits():
    layer = make_layer()
    hidden, _, weights = make_batch(supervised=1)
    hidden = 3 * hidden
    table = ops.convert_to_numpy(layer.embeddings).astype("float64")
    logits = hidden.astype("float64") @ table.T
    labels = logits.argmax(-1).astype("int32")
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    others = probabilities * (np.arange(V) != labels[..., None])
    scale = weights[..., None] / probabilities.sum(-1, keepdims=True)
    expected = scale * (others @ table - others.sum(-1, keepdims=True) * table[labels])
    (_, got) = value_and_gradients(ours(layer, labels, weights), hidden)
    sizes = np.abs(expected).max(-1)
    assert sizes.min() < 1e-6
    assert (np.abs(got - expected).max(-1) / sizes).max() < 1e-3


@pytest.mark.parametrize("kwargs", [{}, {"tie_weights": False}])
@pytest.mark.parametrize("mode", ["int8", "int4", "int4 in groups"])
def test_quantised_heads_give_the_layers_loss_and_a_gradient(mode, kwargs):
    layer = make_layer(**kwargs)
    reverse = layer.embeddings if layer.tie_weights else ops.transpose(layer.reverse_embeddings)
    table = np.array(ops.convert_to_numpy(reverse))
    if mode == "int4 in groups":
        layer.quantize("int4", config=keras.quantizers.Int4QuantizationConfig(block_size=8))
    else:
        layer.quantize(mode)
    hidden, labels, weights = make_batch()
    loss, gradient = value_and_gradients(ours(layer, labels, weights), hidden)
    expected = plain(layer, labels, weights)(ops.convert_to_tensor(hidden))
    np.testing.assert_allclose(loss, ops.convert_to_numpy(expected), rtol=2e-5)
    floats = make_layer(**kwargs)
    target = floats.embeddings if floats.tie_weights else floats.reverse_embeddings
    target.assign(table if floats.tie_weights else table.T)
    _, unquantised = value_and_gradients(ours(floats, labels, weights), hidden)
    cosine = (gradient * unquantised).sum()
    cosine /= np.linalg.norm(gradient) * np.linalg.norm(unquantised)
    assert cosine > (0.99 if mode == "int8" else 0.85)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_half_precision(dtype, trainable):
    layer = make_layer(dtype)
    layer.trainable = trainable
    exact = make_layer()
    exact.embeddings.assign(ops.cast(layer.embeddings, "float32"))
    hidden, labels, weights = make_batch()
    narrow = ops.cast(hidden, layer.compute_dtype)
    variables = [layer.embeddings] if trainable else []

    def function(hidden):
        return ours(layer, labels, weights)(ops.cast(hidden, layer.compute_dtype))

    got = value_and_gradients(function, hidden, variables)
    rounded = ops.convert_to_numpy(ops.cast(narrow, "float32"))
    exact.trainable = trainable
    exact_variables = [exact.embeddings] if trainable else []
    expected = value_and_gradients(
        plain(exact, labels, weights), rounded, exact_variables, compiled=False
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-3)
    assert_same(got[1:], expected[1:], tolerance=2e-2)


def test_reverse_dtype():
    layer = make_layer("bfloat16", reverse_dtype="float32")
    hidden, labels, weights = make_batch()
    got = ours(layer, labels, weights)(ops.convert_to_tensor(hidden))
    reference = make_layer()
    reference.embeddings.assign(ops.cast(layer.embeddings, "float32"))
    expected = plain(reference, labels, weights)(ops.convert_to_tensor(hidden))
    np.testing.assert_allclose(ops.convert_to_numpy(got), ops.convert_to_numpy(expected), rtol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="counts the products of PyTorch")
@pytest.mark.parametrize("mode", ["no gradient", "no_grad"])
def test_evaluation_takes_one_product_a_block(mode, monkeypatch):
    import torch

    from kerora.training import objective_torch

    def refuse(*_):
        raise AssertionError("a product for a gradient that nobody asked for")

    monkeypatch.setattr(objective_torch, "_add_product", refuse)
    hidden, labels, weights = make_batch()
    hidden = ops.convert_to_tensor(hidden).requires_grad_()
    function = ours(make_layer(), labels, weights, gradient=mode != "no gradient")
    with torch.set_grad_enabled(mode != "no_grad"):
        assert function(hidden) > 0
