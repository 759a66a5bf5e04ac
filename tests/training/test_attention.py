"""Attention in a step equals KerasHub's own, in values and in gradients, packed or not."""

import importlib
import inspect
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from tiny_backbones import VOCABULARY, tiny_backbone

from kerora.models.attention_layers import ATTENTION_LAYERS
from kerora.training import attention
from kerora.training.attention import training_attention
from kerora.training.positions import with_positions
from kerora.training.segments import segmented

HOOKED = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt_oss",
    "smollm3",
    "qwen_moe",
    "qwen3_moe",
]
BACKEND = keras.backend.backend()
ON_STOCK = BACKEND == "tensorflow"


def batch():
    rng = np.random.default_rng(3)
    ids = np.zeros((2, 20), "int32")
    ids[0, :7], ids[0, 7:16], ids[0, 16:19] = 1, 2, 3
    ids[1, :13] = 1
    tokens = np.where(ids > 0, rng.integers(1, VOCABULARY, ids.shape), 0).astype("int32")
    return tokens, ids


def values_and_gradients(backbone, tokens, ids, context):
    """Hidden states, and gradients of their weighted sum for every trainable weight."""
    x = {"token_ids": ops.convert_to_tensor(tokens), "padding_mask": ops.convert_to_tensor(ids)}
    x = with_positions(backbone, x)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(*tokens.shape, 32)).astype("float32") * (ids > 0)[..., None]

    def loss_of(hidden):
        return ops.sum(ops.cast(hidden, "float32") * ops.convert_to_tensor(weights))

    if BACKEND == "jax":
        import jax

        def function(trainable, rest):
            with context:
                hidden, _ = backbone.stateless_call(trainable, rest, x)
            return loss_of(hidden), hidden

        trainable = [v.value for v in backbone.trainable_variables]
        rest = [v.value for v in backbone.non_trainable_variables]
        quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        gradient = jax.jit(jax.grad(function, has_aux=True), compiler_options=quick)
        gradients, hidden = gradient(trainable, rest)
    elif BACKEND == "torch":
        import torch

        variables = [v.value for v in backbone.trainable_variables]
        with context:
            hidden = backbone(x)
        gradients = torch.autograd.grad(loss_of(hidden), variables, allow_unused=True)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape, context:
            hidden = backbone(x)
            loss = loss_of(hidden)
        gradients = tape.gradient(loss, [v.value for v in backbone.trainable_variables])
    names = [v.path for v in backbone.trainable_variables]
    hidden = ops.convert_to_numpy(ops.cast(hidden, "float32"))
    return hidden * (ids > 0)[..., None], {
        name: ops.convert_to_numpy(ops.cast(ops.convert_to_tensor(g), "float32"))
        for name, g in zip(names, gradients, strict=True)
        if g is not None
    }


def assert_close(actual, expected, tolerance):
    scale = np.abs(expected).max() + 1e-6
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize("family", HOOKED)
def test_values_and_gradients_equal_kerashubs(family):
    # GPT-OSS has its windows in every second layer, SmolLM3 its rotations in the first of two.
    sizes: dict[str, Any] = {"num_layers": 2 if family in ("gpt_oss", "smollm3") else 1}
    if family == "gemma3n":
        # The second layer takes the first one's keys and values.
        sizes = {"num_hidden_layers": 2, "num_kv_shared_layers": 1}
        sizes |= {"layer_types": ["sliding_attention"] * 2, "activation_sparsity_pattern": None}
    if family == "gemma4":
        sizes = {"num_layers": 2, "num_kv_shared_layers": 0}
        sizes |= {"layer_types": ["sliding_attention", "full_attention"]}
    backbone = tiny_backbone(family, **sizes)
    tokens, ids = batch()
    expected, expected_gradients = values_and_gradients(backbone, tokens, ids, segmented(ids))
    context = training_attention(backbone, ids)
    actual, gradients = values_and_gradients(backbone, tokens, ids, context)
    assert_close(actual, expected, 1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], 3e-5)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_bfloat16_is_as_close_as_its_rounding(family):
    backbone = tiny_backbone(family, dtype="bfloat16", num_layers=1)
    tokens, ids = batch()
    expected, _ = values_and_gradients(backbone, tokens, ids, segmented(ids))
    context = training_attention(backbone, ids)
    actual, _ = values_and_gradients(backbone, tokens, ids, context)
    assert_close(actual, expected, 0.1)
    assert np.abs(actual - expected).mean() < 0.01 * np.abs(expected).mean() + 0.01


@pytest.mark.skipif(ON_STOCK, reason="TensorFlow keeps KerasHub's attention")
def test_the_layers_of_a_step_really_use_it(monkeypatch):
    calls = []
    module = importlib.import_module(f"kerora.training.attention_{BACKEND}")
    stock = module.segment_attention
    layer = next(layer for layer in ATTENTION_LAYERS if layer.class_name == "LlamaAttention")
    stock_layer = importlib.import_module(f"keras_hub.src.models.{layer.module}")
    layer_class = getattr(stock_layer, layer.class_name)
    attention._install()
    for method in ("call", "_compute_attention"):
        monkeypatch.setattr(layer_class, method, inspect.unwrap(getattr(layer_class, method)))
    attention._hook(layer_class, layer, lambda *a, **k: calls.append(a[1].shape) or stock(*a, **k))
    backbone = tiny_backbone("llama")
    tokens, ids = batch()
    x = {"token_ids": ops.convert_to_tensor(tokens), "padding_mask": ops.convert_to_tensor(ids)}
    backbone(x)
    assert not calls
    with training_attention(backbone, x["padding_mask"]):
        backbone(x)
    # Keys and values come with their own two heads, not repeated for the four of the queries.
    assert [tuple(shape) for shape in calls] == [(2, 20, 2, 8)] * 2


def test_a_family_that_cannot_be_packed_keeps_its_own_masks():
    backbone = tiny_backbone("falcon")
    tokens, _ = batch()
    mask = (tokens > 0).astype("int32")
    x = {"token_ids": ops.convert_to_tensor(tokens), "padding_mask": ops.convert_to_tensor(mask)}
    expected = ops.convert_to_numpy(backbone(x))
    with training_attention(backbone, x["padding_mask"]):
        actual = ops.convert_to_numpy(backbone(x))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("layer", ATTENTION_LAYERS, ids=lambda layer: layer.class_name)
def test_kerashubs_attention_layers_are_as_expected(layer):
    module = importlib.import_module(f"keras_hub.src.models.{layer.module}")
    layer_class = getattr(module, layer.class_name)
    compute = inspect.signature(layer_class._compute_attention).parameters
    assert list(compute)[1:5] in (
        ["q", "k", "v", "attention_mask"],
        ["query", "key", "value", "attention_mask"],
    )
    assert "attention_mask" in inspect.signature(layer_class.call).parameters
    if layer.repeats:
        source = inspect.getsource(inspect.unwrap(layer_class.call))
        assert f"repeats=self.{layer.repeats}, axis=2" in source
