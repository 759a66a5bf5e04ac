"""Where models are loaded from, and that a Hugging Face folder gives what transformers gives."""

import json
import os
import warnings
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from backends import families
from keras_hub.src.utils.preset_utils import list_subclasses
from safetensors.numpy import load_file, save_file

from benchmarks.tiny_encoders import ENCODERS, IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_gguf import tiny_gguf
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import IDS, MODELS, SEQUENCE_TO_SEQUENCE, tiny_transformers
from kerora import adapt, from_preset
from kerora.models.errors import ModelSourceError
from kerora.models.loading import (
    BUNDLED,
    chat_template,
    has_template_place,
    load_backbone,
    load_task,
    resolve_source,
)

pytest.importorskip("transformers")
pytest.importorskip("torch")

REAL = os.environ.get("KERORA_REAL_MODELS")


@pytest.mark.parametrize("name", families(MODELS))
def test_a_base_agrees_with_transformers(name, tmp_path):
    reference = tiny_transformers(name, tmp_path)
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
@pytest.mark.skipif(REAL is None, reason="KERORA_REAL_MODELS is not set")
def test_a_real_base_agrees_with_transformers(name):
    import torch
    import transformers

    folder = Path(REAL) / name
    ids = np.array([[2, 9259, 563, 506, 3004, 529, 7001, 236761]]) % 49000
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = torch_logits(reference.eval(), ids)
    model = load_task(folder, dtype="float32")
    assert np.abs(keras_logits(model, ids) - expected).max() < 1e-3
    assert model.preprocessor.tokenizer.detokenize(model.preprocessor.tokenizer("Hi")) == "Hi"


def test_the_type_of_the_weights_is_what_was_asked_for(tmp_path):
    tiny_transformers("llama", tmp_path)
    model = load_task(tmp_path, dtype="bfloat16", preprocessor=None)
    assert model.backbone.token_embedding.embeddings.dtype == "bfloat16"
    exact = keras_logits(load_task(tmp_path, dtype="float32", preprocessor=None))
    assert np.abs(keras_logits(model) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "name",
    families([*ENCODERS, *IMAGE_ENCODERS, *IMAGE_TEXT_ENCODERS, *SEEING, *SEQUENCE_TO_SEQUENCE]),
)
def test_a_backbone_agrees_with_transformers(name, tmp_path):
    reference = tiny_transformers(name, tmp_path)
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize("name", families([*ENCODERS, *SEQUENCE_TO_SEQUENCE]))
def test_padded_rows_agree_with_transformers(name, tmp_path):
    reference = tiny_transformers(name, tmp_path)
    padding = reference.config.pad_token_id
    ids = np.concatenate([IDS + 5, np.full((1, 6), padding)], axis=1) % 64
    mask = np.concatenate([np.ones_like(IDS), np.zeros((1, 6), int)], axis=1)
    found = keras_logits(load_backbone(tmp_path), ids, mask)
    expected = torch_logits(reference, ids, mask)
    # A decoder's rows are not padded here; those of an encoder alone are, and mean nothing there.
    length = ids.shape[1] if name in SEQUENCE_TO_SEQUENCE else IDS.shape[1]
    np.testing.assert_allclose(found[:, :length], expected[:, :length], atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "told"),
    [("clip", r"'clip'.* other answers\."), ("gemma4_assistant", r"_assistant'.* drafts tokens")],
)
def test_a_backbone_that_was_never_checked_is_refused(model_type, told, tmp_path):
    tiny_transformers("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    with pytest.raises(ModelSourceError, match=told):
        load_backbone(tmp_path)


def test_sharded_weights_are_read(tmp_path):
    model = tiny_transformers("gemma3", tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    loaded = load_task(tmp_path / "sharded", preprocessor=None)
    np.testing.assert_allclose(keras_logits(loaded), torch_logits(model), atol=1e-4)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_without_its_weights_a_model_is_random(kind, tmp_path):
    source = tmp_path if kind == "folder" else tmp_path / "model.gguf"
    if kind == "folder":
        tiny_transformers("llama", tmp_path)
    else:
        tiny_gguf("llama", source)
    stored = load_task(source, preprocessor=None)
    model = load_task(source, preprocessor=None, load_weights=False)
    for new, old in zip(model.backbone.weights, stored.backbone.weights, strict=True):
        assert new.shape == old.shape
        if len(new.shape) > 1:
            assert np.std(new) > 0
            assert not np.allclose(new, old)


def test_a_keras_preset_folder_is_loaded(tmp_path):
    tiny_transformers("qwen3", tmp_path / "hf")
    model = load_task(tmp_path / "hf", preprocessor=None)
    model.backbone.save_to_preset(str(tmp_path / "keras"))
    again = load_task(tmp_path / "keras", preprocessor=None)
    assert type(again) is type(model)
    assert type(again) is keras_hub.models.Qwen3CausalLM


@pytest.mark.parametrize(("epsilon", "told"), [(1e-6, False), (1e-2, True)])
def test_a_preset_that_would_give_other_answers_is_told(epsilon, told, tmp_path):
    tiny_transformers("gemma3", tmp_path / "hf", rms_norm_eps=epsilon)
    model = from_preset(tmp_path / "hf", preprocessor=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_to_preset(tmp_path / "keras")
    assert told == any("no place for epsilon" in str(one.message) for one in caught)
    again = load_task(tmp_path / "keras", preprocessor=None)
    assert told == (np.abs(keras_logits(again) - keras_logits(model)).max() > 1e-3)


def test_keras_hub_goes_on_loading_its_own_class():
    plain = keras_hub.models.CausalLM.from_preset(str(BUNDLED["tiny_gemma"]))
    adapted = adapt(keras_hub.models.CausalLM.from_preset(str(BUNDLED["tiny_gemma"])))
    assert type(adapted) is not type(plain)
    assert type(adapted) not in list_subclasses(keras_hub.models.CausalLM)


def test_a_field_of_the_wrong_type_in_an_encoder_is_named(tmp_path):
    tiny_transformers("t5gemma2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["text_config"]["num_hidden_layers"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=r"`encoder\.text_config\.num_hidden_layers`"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("position_embedding_type", "absolute"), ("is_decoder", True), ("is_folding_model", True)],
)
def test_what_esm_layers_cannot_express_is_refused(field, value, tmp_path):
    tiny_transformers("esm", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ModelSourceError, match=field):
        load_backbone(tmp_path)


def test_an_esm_without_token_dropout(tmp_path):
    reference = tiny_transformers("esm", tmp_path, token_dropout=False)
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [("weight", "bias"), ("gamma", "beta")])
def test_norms_are_read_under_newer_and_older_names(scale, offset, tmp_path):
    reference = tiny_transformers("esm", tmp_path)
    file = tmp_path / "model.safetensors"
    names = {"weight": scale, "gamma": scale, "bias": offset, "beta": offset}
    renamed = {}
    for name, tensor in load_file(file).items():
        module, _, last = name.rpartition(".")
        renamed[f"{module}.{names[last]}" if "LayerNorm" in module else name] = tensor
    save_file(renamed, file, {"format": "pt"})
    assert f"encoder.layer.0.LayerNorm.{scale}" in renamed
    found = keras_logits(load_backbone(tmp_path))
    np.testing.assert_allclose(found, torch_logits(reference), atol=1e-4)


def test_weights_without_a_place_are_refused(tmp_path):
    tiny_transformers("llama", tmp_path, attention_bias=True)
    with pytest.raises(ModelSourceError, match=r"no place.*self_attn\.k_proj\.bias"):
        load_task(tmp_path, preprocessor=None)


def test_damaged_weights_are_refused(tmp_path):
    tiny_transformers("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelSourceError, match="is damaged"):
        load_task(tmp_path, preprocessor=None)


def test_a_folder_without_tokenizer_says_so(tmp_path):
    tiny_transformers("llama", tmp_path)
    with pytest.raises(ModelSourceError, match="preprocessor=None"):
        load_task(tmp_path)


def test_sources_that_name_no_model(tmp_path):
    with pytest.raises(ModelSourceError, match=r"Did you mean 'gemma_2b_en'"):
        resolve_source("gemma_2b_eng")
    with pytest.raises(ModelSourceError, match="no causal language model"):
        resolve_source("bert_base_en")
    with pytest.raises(ModelSourceError, match="neither a KerasHub preset"):
        resolve_source(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelSourceError, match="never read"):
        resolve_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelSourceError, match="registered_name"):
        resolve_source(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelSourceError, match="not valid"):
        resolve_source(tmp_path)
    with pytest.raises(ModelSourceError, match="is a folder"):
        resolve_source(tmp_path / "config.json")


def test_the_chat_template_of_a_folder(tmp_path):
    tiny_transformers("llama", tmp_path)
    assert chat_template(tmp_path) is None
    assert has_template_place(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "{{ plain }}"}))
    assert chat_template(tmp_path) == "{{ plain }}"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path) == "{%+ if tools +%}t{%+ else +%}d{%+ endif +%}"
    settings.write_text(json.dumps({"chat_template": named[1:]}))
    assert chat_template(tmp_path) == "d"
    settings.write_text(json.dumps({"chat_template": [{"name": "default", "template": 1}]}))
    with pytest.raises(ModelSourceError, match="a list of named ones"):
        chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert chat_template(tmp_path) == "{{ file }}"


def test_an_argument_that_would_do_nothing_is_refused():
    with pytest.raises(TypeError, match=r"Received: dtyp\. Did you mean 'dtype'\?"):
        from_preset("tiny_gemma", dtyp="bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat61", "int32"])
def test_a_type_that_weights_cannot_have_is_refused(dtype):
    with pytest.raises(ModelSourceError, match=f"float32, bfloat16, .* Received: '{dtype}'"):
        from_preset("tiny_gemma", dtype=dtype)


def test_the_bundled_model_is_loaded():
    model = load_task("tiny_gemma")
    assert isinstance(model, keras_hub.models.GemmaCausalLM)
    assert chat_template("tiny_gemma") is None
    assert not has_template_place("tiny_gemma")
    assert keras.ops.shape(model.backbone.token_embedding.embeddings)[0] > IDS.max()


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "a/b.safetensors"]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(name, tmp_path):
    tiny_transformers("llama", tmp_path).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {**content["weight_map"], "lm_head.weight": name}
    index.write_text(json.dumps(content))
    with pytest.raises(ModelSourceError, match="must name safetensors files beside it"):
        load_task(tmp_path, preprocessor=None)
