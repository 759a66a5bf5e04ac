"""Adapters on int8 and int4 bases: the first pass, the gradients, and a loss that falls."""

import keras
import numpy as np
import pytest
from adapted_models import (
    all_equal,
    as_numpy,
    compile_for_tokens,
    eager_logits,
    fill_factors,
    fit_losses,
    gemma_task,
    logits,
    small_model,
    values,
)

from kerora.adapters import (
    AdapterError,
    LoraConfig,
    add_adapter,
    merge_adapter,
    remove_adapter,
)
from kerora.adapters.host import get_adapter

CASES = [(gemma_task, "all-linear"), (small_model, ["gate", "token_embedding"])]


def _adapted(make, mode, targets):
    model = make()
    model.quantize(mode)
    before, eager = logits(model), eager_logits(model)
    add_adapter(model, LoraConfig(rank=4, targets=targets))
    return model, before, eager


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize(("make", "targets"), CASES)
def test_the_first_pass_is_the_bases_and_the_loss_falls(make, targets, mode):
    model, before, eager = _adapted(make, mode, targets)
    compiled_alike = np.array_equal(logits(model), before)
    assert np.array_equal(eager_logits(model), eager)

    frozen = values(model.non_trainable_weights)
    losses = fit_losses(compile_for_tokens(model), epochs=6)
    assert losses[-1] < losses[0] - 0.1
    assert all_equal(values(model.non_trainable_weights), frozen)
    if not compiled_alike and keras.backend.backend() == "jax" and mode == "int8":
        pytest.xfail("XLA, compiling anew, rounds the last bit of int8 logits another way")
    assert compiled_alike


def test_int8_learns_about_as_fast_as_float32():
    falls = []
    for mode in (None, "int8"):
        model = small_model()
        if mode:
            model.quantize(mode)
        add_adapter(model, LoraConfig(rank=4, targets="all-linear"))
        losses = fit_losses(compile_for_tokens(model), epochs=6)
        falls.append(losses[0] - losses[-1])
    assert falls[1] > 0.8 * falls[0] > 0.05


@pytest.mark.parametrize(
    ("mode", "dtype"), [("int8", "float32"), ("int4", "float32"), ("int4", "bfloat16")]
)
@pytest.mark.parametrize("layer_class", ["dense", "einsum", "embedding", "reverse"])
def test_a_quantized_host_adds_the_factored_delta(layer_class, mode, dtype):
    layer = {
        "dense": lambda: keras.layers.Dense(6, dtype=dtype),
        "einsum": lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), dtype=dtype),
        "embedding": lambda: keras.layers.Embedding(8, 4, dtype=dtype),
        "reverse": lambda: keras.layers.ReversibleEmbedding(8, 4, dtype=dtype),
    }[layer_class]()
    by_id = layer_class == "embedding"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, (2, 3)) if by_id else rng.normal(size=(2, 3, 4)).astype("float32")
    options = {"reverse": True} if layer_class == "reverse" else {}
    layer.build((2, 3, 4))
    layer.quantize(mode)
    base = as_numpy(layer(x, **options))
    model = keras.Sequential([layer]) if layer_class != "reverse" else Holder(layer)
    add_adapter(model, LoraConfig(rank=2, alpha=6, targets=layer.name))
    assert np.array_equal(as_numpy(layer(x, **options)), base)

    fill_factors(model, spread=1.0)
    adapter = get_adapter(layer, "default")
    a, b = as_numpy(adapter.kernel_a), as_numpy(adapter.kernel_b)
    flat = a @ b.reshape(2, -1) * 3
    delta = flat[x] if by_id else x @ (flat.T if layer_class == "reverse" else flat)
    precision = 1e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(
        as_numpy(layer(x, **options)),
        base + delta.reshape(base.shape),
        rtol=precision,
        atol=precision * abs(delta).max(),
    )


class Holder(keras.Model):
    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)
        self.built = True

    def call(self, inputs):
        *layers, head = self.parts
        for layer in layers:
            inputs = layer(inputs)
        return head(inputs, reverse=True)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("tied", [True, False])
def test_int8_logits_hand_down_the_gradient_of_the_unrounded_product(tied, cap):
    dense = keras.layers.Dense(4, use_bias=False)
    head = keras.layers.ReversibleEmbedding(7, 4, tie_weights=tied, logit_soft_cap=cap)
    head.build()
    dense.build((5, 3))
    head.quantize("int8")
    model = Holder(dense, head)
    add_adapter(model, LoraConfig(rank=2, targets=dense.name))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)).astype("float32"), rng.normal(size=(5, 7)).astype("float32")
    adapter = get_adapter(dense, "default")
    a, b = as_numpy(adapter.kernel_a), as_numpy(adapter.kernel_b)
    hidden = as_numpy(dense(x))
    output = as_numpy(model(x))

    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, y, batch_size=5, verbose=0)
    step = as_numpy(adapter.kernel_b) - b

    if tied:
        table = as_numpy(head._embeddings) / as_numpy(head.embeddings_scale)[:, None]
    else:
        table = (as_numpy(head.reverse_embeddings) / as_numpy(head.reverse_embeddings_scale)).T
    upstream = 2 * (output - y) / y.size
    upstream = upstream * (1 if cap is None else 1 - (output / cap) ** 2)
    expected = -(x @ a).T @ (upstream @ table)
    np.testing.assert_allclose(step, expected, rtol=1e-4, atol=1e-6)
    exact = hidden @ table.T
    assert abs(output - (exact if cap is None else np.tanh(exact / cap) * cap)).max() < 0.05


def test_a_head_without_adapter_is_again_its_own_class_when_the_last_one_goes():
    model, _, before = _adapted(small_model, "int8", ["gate"])
    head = model.get_layer("token_embedding")
    assert type(head) is not keras.layers.ReversibleEmbedding
    remove_adapter(model)
    assert type(head) is keras.layers.ReversibleEmbedding
    assert np.array_equal(eager_logits(model), before)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_merging_into_a_quantized_base_is_an_error_and_changes_nothing(mode):
    model, _, _ = _adapted(small_model, mode, ["gate"])
    fill_factors(model)
    before = eager_logits(model)
    with pytest.raises(AdapterError, match=rf"quantised \({mode}\).*unquantised base"):
        merge_adapter(model)
    assert np.array_equal(eager_logits(model), before)


def test_quantizing_an_adapted_model_is_an_error_and_changes_nothing():
    model = small_model()
    add_adapter(model, LoraConfig(rank=2))
    with pytest.raises(AdapterError, match="Quantize the model first"):
        model.quantize("int8")
    with pytest.raises(AdapterError, match="Quantize the model first"):
        model.get_layer("query").quantize("int8")
    assert model.get_layer("output").quantization_mode is None
    remove_adapter(model)
    model.quantize("int8")
    assert model.get_layer("query").quantization_mode == "int8"
