"""Adapters on Gemma 4's feed-forward layers, whose kernels KerasHub's blocks use by themselves."""

import keras
import numpy as np
import pytest
from more_backbones import MORE_BACKBONES

from kerora.adapters import LoraConfig, add_adapter
from kerora.adapters.host import get_adapter
from kerora.adapters.lifecycle import adapted_layers

FEEDFORWARD = ["ffw_gating", "ffw_gating_2", "ffw_linear"]


def backbone():
    model = MORE_BACKBONES["gemma4"]()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) > 1 and "float" in weight.dtype:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def hidden(model):
    tokens = np.arange(1, 9).reshape(2, 4)
    inputs = {
        tensor.name: tokens if tensor.name == "token_ids" else np.ones((2, 4), "int32")
        for tensor in model.inputs
    }
    return keras.ops.convert_to_numpy(model(inputs))


def test_their_adapters_compute_what_a_merged_kernel_computes():
    model, merged = backbone(), backbone()
    np.testing.assert_array_equal(hidden(model), hidden(merged))
    add_adapter(model, LoraConfig(rank=2, alpha=3, targets=FEEDFORWARD))
    rng = np.random.default_rng(1)
    kernels = {weight.path: weight for weight in merged.weights}
    for held in adapted_layers(model):
        adapter = get_adapter(held.layer, "default")
        a, b = (rng.normal(0, 0.3, v.shape) for v in (adapter.kernel_a, adapter.kernel_b))
        adapter.kernel_a.assign(a)
        adapter.kernel_b.assign(b)
        kernel = kernels[f"{held.layer.path}/kernel"]
        kernel.assign(keras.ops.convert_to_numpy(kernel) + a @ b * 3 / 2)
    expected = hidden(merged)
    assert np.abs(expected - hidden(backbone())).max() > 0.1
    np.testing.assert_allclose(hidden(model), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantised_kernel_keeps_its_scales(mode):
    model = backbone()
    expected = hidden(model)
    for layer in model._flatten_layers():
        if layer.name in FEEDFORWARD:
            layer.quantize(mode)
    add_adapter(model, LoraConfig(rank=2, targets="query"))
    error = np.abs(hidden(model) - expected).mean() / np.abs(expected).mean()
    assert error < {"int8": 0.05, "int4": 0.5}[mode]
