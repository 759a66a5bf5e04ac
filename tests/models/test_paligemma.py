"""PaliGemma and PaliGemma 2, whose backbones take an image and a text."""

import json

import keras
import keras_hub
import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

import kerora
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora.models import large_tables, weight_loading
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_backbone

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled

FAMILIES = ["paligemma", "paligemma2"]


def change_config(folder, **parts):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for part, fields in parts.items():
        config[part] = {**config[part], **fields} if isinstance(fields, dict) else fields
        if isinstance(fields, dict):
            config[part] = {k: v for k, v in config[part].items() if v != "left out"}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_within_a_prompt_is_not_seen(family, tmp_path):
    reference = tiny_transformers(family, tmp_path)
    mask = np.ones_like(IDS)
    mask[:, 3:8] = 0
    seen = np.concatenate([np.ones(4, bool), mask[0].astype(bool)])
    found = keras_logits(load_backbone(tmp_path), IDS, mask)
    expected = torch_logits(reference, IDS, mask)
    np.testing.assert_allclose(found[:, seen], expected[:, seen], atol=1e-4)


@pytest.mark.parametrize("names", ["published", "of the model"])
def test_names_of_other_versions_are_read(names, tmp_path):
    reference = tiny_transformers("paligemma2", tmp_path)
    if names == "published":
        file = tmp_path / "model.safetensors"
        tensors = {
            name.replace("vision_tower.", "vision_tower.vision_model."): tensor
            for name, tensor in load_file(file).items()
        }
        save_file(tensors, file, {"format": "pt"})
    else:
        reference.save_pretrained(tmp_path, save_original_format=False)
    held = load_file(tmp_path / "model.safetensors")
    assert "vision_tower.post_layernorm.weight" not in held
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_published_folders_leave_out(family, tmp_path):
    text = dict(SEEING[family][1]["text_config"])
    given = {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
    given |= {"num_attention_heads", "num_key_value_heads", "num_image_tokens"}
    text = {name: value for name, value in text.items() if name in given}
    reference = tiny_transformers(family, tmp_path, text_config=text)
    stored = json.loads((tmp_path / "config.json").read_text())["text_config"]
    left_out = {name: "left out" for name in stored if name not in given}
    assert {"head_dim", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"} <= {*left_out}
    change_config(tmp_path, text_config=left_out)
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize(
    ("part", "fields", "told"),
    [
        ("text_config", {"hidden_act": "silu"}, r"text_config\.hidden_act.*silu"),
        ("text_config", {"model_type": "llama"}, "model_type.*llama"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type.*yarn"),
        ("vision_config", {"hidden_act": "gelu"}, r"vision_config\.hidden_act.*'gelu'"),
        ("vision_config", {"model_type": "clip_vision_model"}, "model_type.*clip_vision"),
        ("vision_config", {"num_hidden_layers": 10**6}, "vision_config.num_hidden_layers"),
        ("vision_config", {"num_hidden_layers": 1}, "no place for 16"),
        ("vision_config", {"image_size": 2**30}, r"`vision_config\.image_size` can be"),
        ("tie_word_embeddings", False, "tie_word_embeddings"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(part, fields, told, tmp_path):
    tiny_transformers("paligemma", tmp_path)
    change_config(tmp_path, **{part: fields})
    with pytest.raises(ModelSourceError, match=told):
        load_backbone(tmp_path)


def test_biases_of_the_attention_are_refused_by_name(tmp_path):
    text = {**SEEING["paligemma"][1]["text_config"], "attention_bias": True}
    tiny_transformers("paligemma", tmp_path, text_config=text)
    with pytest.raises(ModelSourceError, match=r"no place for 8 .*self_attn\.k_proj\.bias"):
        load_backbone(tmp_path)


def test_a_large_table_is_filled_a_few_rows_at_a_time(tmp_path, monkeypatch):
    tiny_transformers("paligemma", tmp_path)
    filled = []

    def fill_rows(variable, place):
        filled.append(variable.path)
        large_tables.fill_rows(variable, place)

    monkeypatch.setattr(large_tables, "LARGE_BYTES", 64 * 32 * 4)
    monkeypatch.setattr(weight_loading, "fill_rows", fill_rows)
    backbone = load_backbone(tmp_path)
    assert backbone.token_embedding.embeddings.path in filled
    stored = load_file(tmp_path / "model.safetensors")["language_model.model.embed_tokens.weight"]
    table = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
    np.testing.assert_array_equal(table, stored)


def test_a_task_is_put_around_the_backbone(tmp_path):
    tiny_transformers("paligemma2", tmp_path)
    backbone = load_backbone(tmp_path)
    before = keras_logits(backbone)
    task = kerora.adapt(keras_hub.models.PaliGemmaCausalLM(backbone=backbone, preprocessor=None))
    task.backbone.enable_lora(2)
    np.testing.assert_allclose(keras_logits(task.backbone), before, atol=1e-6)

    rng = np.random.default_rng(0)
    ids = rng.integers(3, 60, (2, 9)).astype("int32")
    answered = np.arange(8)[None].repeat(2, 0) >= 3
    inputs = {
        "images": rng.normal(size=(2, *backbone.input["images"].shape[1:])).astype("float32"),
        "token_ids": ids[:, :-1],
        "padding_mask": np.ones((2, 8), "int32"),
        "response_mask": answered.astype("int32"),
    }
    task.compile(keras.optimizers.Adam(1e-2))
    options = {"batch_size": 2, "epochs": 2, "verbose": 0}
    history = task.fit(inputs, ids[:, 1:], sample_weight=answered.astype("float32"), **options)
    first, second = history.history["loss"]
    assert second < first
