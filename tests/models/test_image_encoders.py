"""Encoders of images, which take no tokens."""

import json

import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

from benchmarks.tiny_encoders import IMAGES
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters.targets import select
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_backbone

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_a_classifier_is_read_as_its_encoder(family, tmp_path):
    # So published folders are stored; a bare encoder's names lack the first part.
    tiny_transformers(family, tmp_path / "bare")
    kind = transformers.AutoModelForImageClassification
    classifier = kind.from_pretrained(tmp_path / "bare").eval()
    classifier.save_pretrained(tmp_path / "whole")
    assert "classifier.weight" in load_file(tmp_path / "whole" / "model.safetensors")
    encoder = getattr(classifier, family)
    found = keras_logits(load_backbone(tmp_path / "whole"))
    np.testing.assert_allclose(found, torch_logits(encoder), atol=1e-4)


@pytest.mark.parametrize(
    ("family", "field", "value", "told"),
    [
        ("vit", "qkv_bias", False, "qkv_bias"),
        ("vit", "hidden_act", "relu", "hidden_act"),
        ("deit", "qkv_bias", False, "qkv_bias"),
        ("dinov2", "hidden_act", "relu", "hidden_act"),
        ("dinov2", "image_size", [28, 28], "image_size"),
        ("dinov3", "image_size", -28, "image_size"),
        ("dinov3", "hidden_act", "quick_gelu", "quick_gelu"),
        ("vit", "image_size", 7 * 2**30, "image_size"),
        ("swin", "hidden_act", "relu", "hidden_act"),
        ("swin", "use_absolute_embeddings", True, "use_absolute_embeddings"),
        ("swin", "image_size", 42, "a multiple of 28"),
        ("swin", "window_size", 65, "window_size"),
        ("swin", "depths", [2, 2**20], "depths"),
        ("swin", "num_heads", [2, "4"], "num_heads"),
    ],
)
def test_a_field_that_cannot_be_computed_is_refused(family, field, value, told, tmp_path):
    tiny_transformers(family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ModelSourceError, match=told):
        load_backbone(tmp_path)


def test_swiglu_of_a_dinov2_with_registers(tmp_path):
    fields = {"use_swiglu_ffn": True, "hidden_size": 40}
    reference = tiny_transformers("dinov2_with_registers", tmp_path, **fields)
    # As in published folders.
    assert "encoder.layer.0.mlp.weights_in.weight" in load_file(tmp_path / "model.safetensors")
    found = keras_logits(load_backbone(tmp_path))
    np.testing.assert_allclose(found, torch_logits(reference), atol=1e-4)


def test_a_preset_of_a_vit_computes_the_same(tmp_path):
    tiny_transformers("vit", tmp_path / "hf")
    backbone = load_backbone(tmp_path / "hf")
    backbone.save_to_preset(str(tmp_path / "keras"))
    again = load_backbone(tmp_path / "keras")
    np.testing.assert_allclose(keras_logits(again), keras_logits(backbone), atol=1e-6)


def test_an_activation_that_dinov3_has_in_both(tmp_path):
    reference = tiny_transformers("dinov3", tmp_path, hidden_act="silu", use_gated_mlp=False)
    found = keras_logits(load_backbone(tmp_path))
    np.testing.assert_allclose(found, torch_logits(reference), atol=1e-4)


def test_a_table_that_older_versions_stored_is_no_weight(tmp_path):
    tiny_transformers("swin", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "encoder.layers.0.blocks.0.attention.self.relative_position_{}"
    tensors[name.format("index")] = np.zeros((4, 4), "int64")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    load_backbone(tmp_path)
    tensors[name.format("bucket")] = np.zeros((4, 4), "int64")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelSourceError, match="relative_position_bucket"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3"])
def test_what_is_adapted_without_being_named(family, tmp_path):
    tiny_transformers(family, tmp_path)
    backbone = load_backbone(tmp_path)
    assert len(select(backbone, None)) == 4
    assert len(select(backbone, "all-linear")) == 12 + 2 * (family == "dinov3")
    assert keras_logits(backbone).shape[0] == len(IMAGES)
