"""SAM 3: what its detector says of images, texts and boxes."""

import json

import keras
import numpy as np
import pytest
from backends import once_uncompiled

from benchmarks.tiny_sam3 import (
    BOXES,
    LABELS,
    as_video_model,
    keras_detections,
    torch_detections,
)
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora.adapters.targets import select
from kerora.models.errors import ModelSourceError
from kerora.models.huggingface_sam3 import complete_sam3
from kerora.models.loading import load_backbone, load_task

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

not_on_jax = pytest.mark.skipif(
    keras.config.backend() == "jax", reason="compiles for long; `benchmarks.interchange` compares"
)
BACKBONE = {"model_type": "sam3_vit_model", "rope_theta": 30.0}
NO_BOXES = {"boxes": BOXES[:, :0], "labels": LABELS[:, :0]}


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param({}, id="boxes", marks=not_on_jax),
        pytest.param(NO_BOXES, id="text alone", marks=once_uncompiled),
        pytest.param({"labels": np.full_like(LABELS, -10)}, id="padding", marks=once_uncompiled),
        pytest.param({"labels": np.roll(LABELS, 1, 1)}, id="padding first", marks=once_uncompiled),
        pytest.param(
            {"padding_mask": (IDS < 60).cumprod(1)}, id="padded text", marks=once_uncompiled
        ),
    ],
)
def test_a_detector_agrees_with_transformers(shown, tmp_path):
    reference = tiny_transformers("sam3", tmp_path)
    found = keras_detections(load_backbone(tmp_path), IDS, **shown)
    np.testing.assert_allclose(found, torch_detections(reference, IDS, **shown), atol=1e-4)


@once_uncompiled
def test_one_image_of_a_batch_is_as_it_is_alone(tmp_path):
    tiny_transformers("sam3", tmp_path)
    backbone = load_backbone(tmp_path)
    inputs = {
        "pixel_values": np.random.default_rng(1).normal(size=(2, 28, 28, 3)).astype("float32"),
        "token_ids": np.repeat(IDS, 2, 0).astype("int32"),
        "padding_mask": np.ones((2, IDS.shape[1]), "int32"),
        # The number that each image had where KerasHub's preprocessor saw it.
        "boxes": np.concatenate([np.full((2, 3, 1), 7.0, "float32"), BOXES], -1),
        "box_labels": LABELS,
    }
    whole = backbone(inputs)
    second = backbone({name: value[1:] for name, value in inputs.items()})
    for name, value in second.items():
        expected = keras.ops.convert_to_numpy(whole[name][1:])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected, atol=1e-5)


@once_uncompiled
def test_the_detector_of_a_video_model_is_loaded_without_its_tracker(tmp_path):
    tiny_transformers("sam3", tmp_path / "detector")
    as_video_model(tmp_path / "detector", tmp_path / "video")
    reference = transformers.Sam3Model.from_pretrained(tmp_path / "video").eval()
    expected = torch_detections(reference, IDS)
    found = keras_detections(load_backbone(tmp_path / "video"), IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@once_uncompiled
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"text_config": {}, "detr_decoder_config": {"num_layers": 2}, "vision_config": None},
        {"vision_config": {"backbone_config": BACKBONE, "scale_factors": None}},
    ],
)
def test_fields_that_a_folder_leaves_out(given):
    expected = transformers.Sam3Config(**json.loads(json.dumps(given))).to_dict()
    completed = complete_sam3({"model_type": "sam3", **given})["detector_config"]
    assert (
        completed
        == complete_sam3({"model_type": "sam3_video", "detector_config": given})["detector_config"]
    )
    completed["vision_config"]["backbone_config"].pop("rope_theta", None)  # also where it was
    assert_same_fields(completed, expected)
    assert len(completed) == 6


def assert_same_fields(found, expected):
    for name, value in found.items():
        if isinstance(value, dict):
            assert_same_fields(value, expected[name])
        else:
            assert (name, value) == (name, expected[name])


@once_uncompiled
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("text_config.hidden_act", "quick_gelu", r"`text_config\.hidden_act`.*quick_gelu"),
        ("detr_encoder_config.hidden_act", "gelu_new", r"`detr_encoder_config\.hidden_act`"),
        ("vision_config.backbone_config.hidden_act", "tanh", r"backbone_config\.hidden_act`"),
        ("vision_config.backbone_config.num_channels", 1, "num_channels"),
        ("vision_config.backbone_config.image_size", [28, 28], "image_size"),
        ("vision_config.backbone_config.pretrain_image_size", [14, 14], "pretrain_image_size"),
        ("vision_config.backbone_config.window_size", 3, "window_size"),
        ("vision_config.backbone_config.rope_parameters.rope_type", "yarn", "rope_type"),
        ("vision_config.scale_factors", [3.0], "[Ss]cale factor"),
        ("detr_decoder_config.num_queries", 10**9, "num_queries"),
        ("geometry_encoder_config", 3, "`geometry_encoder_config` must be an object"),
    ],
)
def test_a_field_that_cannot_be_computed_is_refused(field, value, told, tmp_path):
    tiny_transformers("sam3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    *parts, name = field.split(".")
    inner = config
    for part in parts:
        inner = inner[part]
    inner[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=told):
        load_backbone(tmp_path)


@once_uncompiled
def test_all_parts_have_the_type_that_was_asked_for(tmp_path):
    reference = tiny_transformers("sam3", tmp_path)
    backbone = load_backbone(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in backbone.weights} == {"bfloat16"}
    exact = torch_detections(reference, IDS)
    assert np.abs(keras_detections(backbone, IDS) - exact).max() < 0.1 * np.abs(exact).max()
    assert keras.config.dtype_policy().name == "float32"


@once_uncompiled
def test_all_of_it_is_adapted_without_being_named(tmp_path):
    tiny_transformers("sam3", tmp_path)
    backbone = load_backbone(tmp_path)
    parts = {c.path.split("/")[0] for c in select(backbone, "all-linear")}
    assert len(parts) == 8
    # Queries and values of the encoders' layers, and of what attends within and across elsewhere.
    assert len(select(backbone, None)) == 2 * (2 + 2 + 2 * 2 + 2 * 2 + 3 * 2 + 1)


@once_uncompiled
def test_it_is_no_causal_language_model(tmp_path):
    tiny_transformers("sam3", tmp_path)
    with pytest.raises(ModelSourceError, match="load_backbone"):
        load_task(tmp_path, preprocessor=None)


@once_uncompiled
def test_a_preset_of_it_is_read(tmp_path):
    tiny_transformers("sam3", tmp_path / "hf")
    backbone = load_backbone(tmp_path / "hf")
    backbone.save_to_preset(str(tmp_path / "keras"))
    again = load_backbone(tmp_path / "keras")
    for mine, stored in zip(again.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(stored)
        )
