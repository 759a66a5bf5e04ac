"""Adapters that cannot be loaded: the file and the key are named, and the model stays as it was."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_backbones import tiny_backbone

from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.interchange import load_adapter, save_adapter

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.lora_A.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_backbone("llama")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "adapter"
    save_adapter(add_adapter(tiny_backbone("llama"), LoraConfig(rank=2)), folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")


def refuses(model, folder, match, force=True):
    before = [id(weight) for weight in model.weights]
    with pytest.raises(AdapterError, match=match) as told:
        load_adapter(model, folder, force=force)
    assert adapter_configs(model) == {}
    assert [id(weight) for weight in model.weights] == before
    return str(told.value)


def change_fields(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_the_folder_above_names_the_adapter_below(model, folder):
    refuses(model, folder.parent, rf"no adapter_config.json.* There is one below: {folder}$")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"some_new_method": {"depth": 2}}, "some_new_method"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"bias": "some"}, "bias"),
        ({"r": "four"}, "`r`"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"r": 3}, r"rank 3.*\(2, 32\)"),
    ],
)
def test_fields_that_kerora_does_not_have(fields, match, model, folder):
    change_fields(folder, **fields)
    refuses(model, folder, match)


def test_fields_that_are_off_change_nothing(folder):
    change_fields(folder, some_new_method=None, use_other=False, other_config={})
    other = tiny_backbone("llama")
    load_adapter(other, folder, force=True)
    assert adapter_configs(other)["default"].rank == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(KEY), "lacks factor A of: model.layers.0.self_attn.q_proj"),
        (lambda t: t.update({KEY: t[KEY][:, :5]}), r"'model.layers.0.*must have shape \(2, 32\)"),
        (lambda t: t.update({KEY: t[KEY] * np.nan}), "NaN"),
        (lambda t: t.update({KEY: t[KEY].astype("int32")}), "floating point"),
        (lambda t: t.update({KEY.replace("lora_A.weight", "lora_E"): t[KEY]}), "no part of"),
        (lambda t: t.update({HEAD: t[KEY], HEAD.replace("_A", "_B"): t[KEY]}), "lm_head"),
        (lambda t: t.update({"base_model.model.model.norm.bias": t[KEY][0]}), "no bias in"),
        (lambda t: t.clear(), "no adapter"),
    ],
)
def test_tensors_that_do_not_fit(change, match, model, folder):
    change_tensors(folder, change)
    refuses(model, folder, match)


def test_an_adapter_of_a_deeper_model(model, tmp_path):
    deeper = add_adapter(tiny_backbone("llama", num_layers=3), LoraConfig(rank=2))
    deeper.source = "my/deeper-llama"
    save_adapter(deeper, tmp_path / "adapter")
    folder = tmp_path / "adapter"
    refuses(model, folder, r"trained on another base \('my/deeper-llama'\)", force=False)
    told = refuses(model, folder, r"no layer for 2 of the 6.*layers\.2\.self_attn\.q_proj")
    assert "'my/deeper-llama'" in told
    assert "leave_out" in told


def test_an_adapter_of_another_family_is_told_by_its_base(tmp_path):
    adapted = add_adapter(tiny_backbone("llama"), LoraConfig(rank=2))
    adapted.source = "my/llama"
    save_adapter(adapted, tmp_path / "adapter")
    other = tiny_backbone("gpt2")
    folder = tmp_path / "adapter"
    refuses(other, folder, r"another base \('my/llama'\).*not a LlamaBackbone", force=False)
    told = refuses(other, folder, "no layer for 4 of the 4")
    assert "'my/llama'" in told
    assert "leave_out" not in told


def test_files_that_are_missing_or_cut_short(model, folder, tmp_path):
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        refuses(model, folder, "adapter_model.safetensors is damaged")
    file.rename(folder / "adapter_model.bin")
    refuses(model, folder, "never read")
    (folder / "adapter_model.bin").unlink()
    refuses(model, folder, "no adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": ')
    refuses(model, folder, "adapter_config.json is not valid JSON")
    (folder / "adapter_config.json").write_text("[]")
    refuses(model, folder, "JSON object")
    (folder / "adapter_config.json").unlink()
    refuses(model, folder, "no adapter folder")
    refuses(model, tmp_path / "nothing", "There is no adapter folder")


def test_a_tied_table_that_peft_leaves_untied(tmp_path):
    tied = add_adapter(
        tiny_backbone("gemma"), LoraConfig(rank=2, targets=["token_embedding", "query"])
    )
    save_adapter(tied, tmp_path / "adapter")
    change_fields(tmp_path / "adapter", ensure_weight_tying=False)
    with pytest.raises(AdapterError, match="ensure_weight_tying"):
        load_adapter(tiny_backbone("gemma"), tmp_path / "adapter", force=True)
