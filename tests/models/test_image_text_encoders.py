"""Models that compare images with texts."""

import json

import keras
import numpy as np
import pytest
from backends import once_uncompiled

from benchmarks.tiny_encoders import IMAGES
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora.adapters.targets import select
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_backbone, load_task

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = once_uncompiled

END, PADDING = 63, 1


def change_config(folder, fields):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, value in fields.items():
        part, _, field = name.rpartition(".")
        (config[part] if part else config)[field] = value
    file.write_text(json.dumps(config))


def test_padded_texts_and_one_without_an_end(tmp_path):
    reference = tiny_transformers("metaclip_2", tmp_path)
    ids = np.full((4, 9), PADDING)
    for row, text in enumerate([[5, 2, 9, END], [5, 7, 2, 30, 31, END], [END], [2, 8, 5]]):
        ids[row, : len(text)] = text
    found = keras_logits(load_backbone(tmp_path), ids)
    expected = torch_logits(reference, ids, (ids != PADDING).astype(int))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fields_that_a_folder_leaves_out(tmp_path):
    kept = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1}
    left_out = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {"num_attention_heads": 12, "num_channels": 3, "patch_size": 32, "image_size": 224}
    text = {"num_attention_heads": 8, "eos_token_id": 49407, "max_position_embeddings": 77}
    reference = tiny_transformers(
        "metaclip_2",
        tmp_path,
        vision_config={**kept, **left_out, **vision},
        text_config={**kept, **left_out, **text, "vocab_size": 64},
        projection_dim=512,
    )
    # The size of the projections is the whole model's, whatever an encoder alone would have.
    short = {
        "model_type": "metaclip_2",
        "vision_config": {**kept, "projection_dim": 20},
        "text_config": {**kept, "vocab_size": 64},
    }
    (tmp_path / "config.json").write_text(json.dumps(short))
    images = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype("float32")
    ids = IDS % 20  # 2 among them, which ends no text here
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        expected = reference(input_ids=torch.tensor(ids), pixel_values=pixels)
    backbone = load_backbone(tmp_path)
    found = backbone.get_vision_embeddings(images), backbone.get_text_embeddings(ids)
    outputs = (expected.vision_model_output, expected.text_model_output)
    for mine, theirs in zip(found, outputs, strict=True):
        mine = keras.ops.convert_to_numpy(mine)
        np.testing.assert_allclose(mine, theirs.pooler_output.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("vision_config.hidden_act", "leaky_relu", r"`vision_config\.hidden_act`.*quick_gelu"),
        ("text_config.hidden_act", "gelu_new", r"`text_config\.hidden_act`.*quick_gelu"),
        ("text_config.eos_token_id", [2, 63], r"`text_config\.eos_token_id`.*whole number"),
        ("vision_config.num_channels", 1, r"`vision_config\.num_channels`"),
        ("text_config_dict", {"hidden_act": "gelu"}, "`text_config_dict`"),
        ("vision_config.image_size", [28, 28], r"`vision_config\.image_size`"),
        ("vision_config.layer_norm_eps", -1.0, r"`vision_config\.layer_norm_eps`"),
        ("vision_config.num_hidden_layers", 10**9, r"`vision_config\.num_hidden_layers`"),
        ("vision_config.image_size", 7 * 2**30, r"`vision_config\.image_size` can be"),
        ("text_config.eos_token_id", 2**31, r"`text_config\.eos_token_id`.*32 bits"),
        ("projection_dim", 21, "projection"),
        ("vision_config", 3, "`vision_config` must be an object"),
    ],
)
def test_a_field_that_cannot_be_computed_is_refused(field, value, told, tmp_path):
    tiny_transformers("metaclip_2", tmp_path)
    change_config(tmp_path, {field: value})
    with pytest.raises(ModelSourceError, match=told):
        load_backbone(tmp_path)


def test_both_encoders_have_the_type_that_was_asked_for(tmp_path):
    tiny_transformers("metaclip_2", tmp_path)
    backbone = load_backbone(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in backbone.weights} == {"bfloat16"}
    assert {tensor.dtype for tensor in backbone.outputs} == {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


def test_both_encoders_are_adapted_without_being_named(tmp_path):
    tiny_transformers("metaclip_2", tmp_path)
    backbone = load_backbone(tmp_path)
    assert len(select(backbone, None)) == 2 * (3 + 2)
    assert len(select(backbone, "all-linear")) == 6 * (3 + 2) + 2


def test_a_preset_computes_the_same(tmp_path):
    # With what all published models have.
    tiny_transformers("metaclip_2", tmp_path / "hf")
    published = {
        "vision_config.layer_norm_eps": 1e-5,
        "text_config.layer_norm_eps": 1e-5,
        "text_config.eos_token_id": 2,
    }
    change_config(tmp_path / "hf", published)
    backbone = load_backbone(tmp_path / "hf")
    backbone.save_to_preset(str(tmp_path / "keras"))
    again = load_backbone(tmp_path / "keras")
    np.testing.assert_allclose(keras_logits(again), keras_logits(backbone), atol=1e-6)


@pytest.mark.parametrize("kind", ["MetaClip2ForImageClassification", "MetaClip2VisionModel"])
def test_half_of_a_model_is_refused(kind, tmp_path):
    tiny_transformers("metaclip_2", tmp_path / "whole")
    half = getattr(transformers, kind).from_pretrained(tmp_path / "whole")
    half.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelSourceError, match=r"projection|metaclip_2_vision_model"):
        load_backbone(tmp_path / "half")


def test_it_is_no_causal_language_model(tmp_path):
    tiny_transformers("metaclip_2", tmp_path)
    with pytest.raises(ModelSourceError, match="load_backbone"):
        load_task(tmp_path, preprocessor=None)
    assert (
        load_backbone(tmp_path)({"images": IMAGES, "token_ids": IDS})["text_logits"].shape[1] == 2
    )
