"""Names and layouts read off KerasHub's converters."""

import keras
import numpy as np
import pytest
from backends import once
from tiny_backbones import tiny_backbone

from benchmarks.tiny_encoders import IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import LoraConfig, add_adapter
from kerora.adapters.targets import candidates
from kerora.interchange import huggingface_weights
from kerora.models.loading import load_backbone

COMPLETE = ["gemma", "gemma2", "gemma3", "llama", "llama3", "mistral", "qwen2", "qwen3", "smollm3"]
WITH_EXPERTS = ["mixtral", "gpt_oss", "qwen_moe", "qwen3_moe"]


def attribute(layer):
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"


def all_names(weights):
    return {weight.name for each in weights.values() for weight in each}


@pytest.mark.parametrize("family", COMPLETE + WITH_EXPERTS)
def test_every_layer_that_can_be_adapted_has_a_name(family):
    backbone = tiny_backbone(family)
    weights = huggingface_weights(backbone)
    layers = [candidate.layer for candidate in candidates(backbone)]
    names = [weights[id(layer), attribute(layer)][0].name for layer in layers]
    assert len(set(names)) == len(layers)
    assert all(name.startswith("model.") and name.endswith(".weight") for name in names)
    if family in COMPLETE and family != "smollm3":
        assert len(weights) == len(backbone.weights)
    for layer in layers:
        if getattr(layer, "bias", None) is not None and family != "gpt_oss":
            [kernel] = weights[id(layer), "kernel"]
            assert weights[id(layer), "bias"][0].module == kernel.module


@once
@pytest.mark.parametrize("family", [*IMAGE_ENCODERS, *IMAGE_TEXT_ENCODERS])
def test_weights_of_an_image_encoder_are_named_as_in_the_model(family, tmp_path):
    pytest.importorskip("transformers")
    reference = tiny_transformers(family, tmp_path)
    backbone = load_backbone(tmp_path)
    weights = huggingface_weights(backbone)
    pooler = {"pooler.dense.weight", "pooler.dense.bias"}
    # Bare parameters, tokens among them, are no weights of a layer in KerasHub.
    matrices = {name for name, weight in reference.named_parameters() if weight.ndim == 2}
    names = all_names(weights)
    assert matrices - pooler - {"embeddings.mask_token"} <= names <= {*reference.state_dict()}


@pytest.mark.parametrize("family", ["phi3", "opt"])
def test_a_family_without_converter_has_no_names(family):
    assert huggingface_weights(tiny_backbone(family)) == {}


@pytest.mark.parametrize("family", ["gemma", "llama", "qwen3"])
def test_a_kernel_is_its_matrix_turned(family):
    exporter = {
        "gemma": lambda kernel: kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1]),
        "llama": lambda kernel: kernel.reshape(kernel.shape[0], -1).T,
        "qwen3": lambda kernel: kernel.reshape(kernel.shape[0], -1).T,
    }[family]
    backbone = tiny_backbone(family)
    weights = huggingface_weights(backbone)
    layers = [c.layer for c in candidates(backbone) if c.layer.name in ("query", "value")]
    assert len(layers) == 4
    for layer in layers:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        [weight] = weights[id(layer), "kernel"]
        matrix = exporter(kernel)
        inputs = (
            layer.equation.split("->")[0].split(",")[1].index("m" if family != "gemma" else "d")
        )
        turned = matrix[weight.rows.ravel()][:, weight.columns.ravel()]
        turned = turned.reshape(*weight.rows.shape, *weight.columns.shape)
        np.testing.assert_array_equal(np.moveaxis(turned, -1, inputs), kernel)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_nothing_is_written_and_quantised_layers_keep_their_names(mode):
    plain = huggingface_weights(tiny_backbone("llama3"))
    backbone = tiny_backbone("llama3")
    backbone.quantize(mode)
    add_adapter(backbone, LoraConfig(rank=2))
    before = [keras.ops.convert_to_numpy(weight) for weight in backbone.weights]
    assert all_names(huggingface_weights(backbone)) == all_names(plain)
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
