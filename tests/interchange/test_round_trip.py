"""What kerora saves, kerora loads: every family, every kind of target, biases, quantised bases."""

import json
import os

import keras
import numpy as np
import pytest
from safetensors import safe_open
from tiny_backbones import tiny_backbone

import kerora
from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.adapters.targets import candidates
from kerora.interchange import inspect_adapter, load_adapter, save_adapter
from kerora.interchange.merge import merge_folder

IDS = np.arange(12, dtype="int32")[None]


def backbone(family, seed=0, dtype="float32", quantize=None):
    keras.utils.set_random_seed(seed)
    model = tiny_backbone(family, dtype, seed)
    if quantize:
        model.quantize(quantize)
    return model


def outputs(model):
    values = model({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    return keras.ops.convert_to_numpy(keras.ops.cast(values, "float32"))


def trained(family, config, **kwargs):
    return randomized(add_adapter(backbone(family, **kwargs), config))


def randomized(model):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama3", "qwen2", "gpt_neo_x"])
def test_all_targets_and_biases_come_back_exactly(family, tmp_path):
    model, other = backbone(family), backbone(family)
    names = sorted({candidate.layer.name for candidate in candidates(model)})
    config = LoraConfig(
        rank=2, alpha=3.0, dropout=0.1, targets=names, exclude="attention_output", bias="all"
    )
    before = outputs(model)
    randomized(add_adapter(model, config))
    assert np.abs(outputs(model) - before).max() > 0.1
    save_adapter(model, tmp_path / "adapter")
    load_adapter(other, tmp_path / "adapter")
    np.testing.assert_array_equal(outputs(other), outputs(model))
    assert adapter_configs(other) == {"default": config}
    paths = [variable.path for variable in model.trainable_variables]
    assert [variable.path for variable in other.trainable_variables] == paths


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantised_base(mode, tmp_path):
    config = LoraConfig(rank=2, targets="all-linear")
    model = trained("llama3", config, quantize=mode)
    save_adapter(model, tmp_path / "adapter")
    assert inspect_adapter(tmp_path / "adapter").kerora["quantization"] == mode
    assert "model.layers.0.self_attn.q_proj" in inspect_adapter(tmp_path / "adapter").factors
    other = backbone("llama3", quantize=mode)
    load_adapter(other, tmp_path / "adapter")
    np.testing.assert_array_equal(outputs(other), outputs(model))
    load_adapter(backbone("llama3"), tmp_path / "adapter")


def test_the_base_is_known_in_another_type_and_no_other_is(tmp_path):
    save_adapter(trained("gemma", LoraConfig(rank=2)), tmp_path / "adapter")
    rounded = backbone("gemma", dtype="bfloat16")
    for weight, exact in zip(rounded.weights, backbone("gemma").weights, strict=True):
        weight.assign(exact.value)
    load_adapter(rounded, tmp_path / "adapter")
    load_adapter(backbone("gemma", quantize="int8"), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"another base.*Load that base \(in Python, `force"):
        load_adapter(backbone("gemma", seed=1), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="not a GemmaBackbone"):
        load_adapter(backbone("llama"), tmp_path / "adapter", force=False)
    other = backbone("gemma", seed=1)
    load_adapter(other, tmp_path / "adapter", force=True)
    assert list(adapter_configs(other)) == ["default"]


def test_any_keras_model_is_stored_under_its_paths(tmp_path):
    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(8, activation="relu", name="first")(inputs)
        return keras.Model(inputs, keras.layers.Dense(3, name="second")(hidden))

    model = add_adapter(build(), LoraConfig(rank=2, targets="all-linear", bias="lora_only"))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    save_adapter(model, tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["first", "second"]
    assert fields["auto_mapping"] == {"base_model_class": "Functional", "parent_library": "keras"}
    other = build()
    load_adapter(other, tmp_path / "adapter")
    x = rng.normal(size=(4, 6)).astype("float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(other(x)), keras.ops.convert_to_numpy(model(x))
    )


def test_the_folder_is_pefts(tmp_path):
    save_adapter(trained("llama", LoraConfig(rank=2, alpha=3, dropout=0.25)), tmp_path / "adapter")
    assert sorted(os.listdir(tmp_path)) == ["adapter"]
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(os.listdir(tmp_path / "adapter")) == files
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 3,
        "lora_dropout": 0.25,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "auto_mapping": None,
    }
    assert {key: fields[key] for key in expected} == expected
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "numpy") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        kinds = {file.get_slice(key).get_dtype() for key in shapes}
    prefix = "base_model.model.model.layers."
    assert kinds == {"F32"}
    assert len(shapes) == 2 * 2 * 2
    assert shapes[prefix + "1.self_attn.q_proj.lora_A.weight"] == [2, 32]
    assert shapes[prefix + "1.self_attn.v_proj.lora_B.weight"] == [16, 2]


def test_targets_that_are_not_all_layers_of_a_name_are_listed_in_full(tmp_path):
    config = LoraConfig(rank=2, targets=["transformer_layer_1/self_attention/query", "value"])
    save_adapter(trained("llama", config), tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["model.layers.1.self_attn.q_proj", "v_proj"]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = trained("gemma", LoraConfig(rank=2))
    for folder in ("one", "two"):
        save_adapter(model, tmp_path / folder)
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_several_adapters_in_one_model(tmp_path):
    model = trained("gemma", LoraConfig(rank=2))
    save_adapter(model, tmp_path / "first")
    load_adapter(model, tmp_path / "first", "second")
    save_adapter(model, tmp_path / "second", "second")
    for file in os.listdir(tmp_path / "first"):
        first = (tmp_path / "first" / file).read_bytes()
        assert (tmp_path / "second" / file).read_bytes() == first
    with pytest.raises(AdapterError, match="already holds an adapter named 'second'"):
        load_adapter(model, tmp_path / "first", "second")


def test_weights_that_would_be_lost_are_an_error(tmp_path):
    model = trained("gemma", LoraConfig(rank=2))
    norm = next(weight for weight in model.weights if weight.name == "scale")
    norm.trainable = True
    with pytest.raises(AdapterError, match=r"1 weights train beside the adapter.*scale"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(AdapterError, match=r"No adapter named 'other'.*default"):
        save_adapter(model, tmp_path / "adapter", "other")


def test_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = kerora.from_preset("tiny_gemma")
    model.backbone.enable_lora(2)
    model.save_adapter("~/adapter")
    assert merge_folder("tiny_gemma", "~/adapter", "~/merged") > 0
    merged = kerora.from_preset("~/merged")
    merged.load_adapter("~/adapter", force=True)
    merged.save_adapter("~/again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "merged")
    assert os.listdir(".") == []
