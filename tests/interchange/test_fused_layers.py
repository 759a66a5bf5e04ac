"""Swin: one layer of KerasHub's, `attention_qkv`, is three modules of `transformers`."""

import warnings

import keras
import numpy as np
import pytest
from backends import once
from safetensors.numpy import load_file

from benchmarks.interchange import BOUND, difference, randomize_keras, randomize_peft
from benchmarks.tiny_transformers import keras_logits, tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.interchange import inspect_adapter, load_adapter, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

peft = pytest.importorskip("peft")
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = once

ATTENTION = "encoder.layers.0.blocks.0.attention"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    tiny_transformers("swin", folder)
    return folder


def tuned_by_peft(folder, tmp_path, **fields):
    model = tiny_transformers("swin", tmp_path / "copy")
    tuned = peft.get_peft_model(model, peft.LoraConfig(lora_alpha=5, **fields)).eval()
    randomize_peft(tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(folder)
    return tuned


@pytest.mark.parametrize(
    ("targets", "fields", "rank"),
    [
        (["k_proj"], {"r": 3}, 3),
        (["q_proj", "v_proj"], {"r": 3, "bias": "lora_only"}, 6),
        (
            ["q_proj", "k_proj", "v_proj", "fc2"],
            {
                "r": 3,
                "use_rslora": True,
                "rank_pattern": {"k_proj": 5, "fc2": 2, r"layers\.1\..*v_proj": 1},
                "alpha_pattern": {"v_proj": 9},
            },
            11,
        ),
    ],
)
def test_modules_that_peft_trained_become_one_adapter(targets, fields, rank, base, tmp_path):
    tuned = tuned_by_peft(tmp_path / "adapter", tmp_path, target_modules=targets, **fields)
    backbone = load_backbone(base)
    before = keras_logits(backbone)
    load_adapter(backbone, tmp_path / "adapter")
    assert adapter_configs(backbone)["default"].rank == rank
    assert np.abs(keras_logits(backbone) - before).max() > 0.1
    assert difference(backbone, tuned) < BOUND

    # What is saved again is the same, though the modules now share their A.
    save_adapter(backbone, tmp_path / "again")
    other = load_backbone(base)
    load_adapter(other, tmp_path / "again")
    assert adapter_configs(other)["default"].rank == rank
    assert difference(other, tuned) < BOUND


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_fused_layer_comes_back_as_it_was(targets, base, tmp_path):
    backbone = load_backbone(base)
    add_adapter(backbone, LoraConfig(rank=3, alpha=5, targets=targets, bias="lora_only"))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert factors[f"base_model.model.{ATTENTION}.k_proj.lora_B.weight"].shape == (16, 3)
    other = load_backbone(base)
    load_adapter(other, tmp_path / "adapter")
    assert adapter_configs(other) == adapter_configs(backbone)
    for mine, again in zip(backbone.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(again)
        )


def test_ranks_that_are_too_many_together_are_refused_by_name(base, tmp_path):
    targets = ["q_proj", "k_proj", "v_proj"]
    tuned_by_peft(tmp_path / "adapter", tmp_path, target_modules=targets, r=6)
    with pytest.raises(AdapterError, match=rf"'{ATTENTION}.q_proj'.*at most 16.*rank=18"):
        load_adapter(load_backbone(base), tmp_path / "adapter")


def test_a_part_of_a_fused_layer_cannot_be_left_out(base, tmp_path):
    tuned_by_peft(tmp_path / "adapter", tmp_path, target_modules=["q_proj", "v_proj"], r=2)
    with pytest.raises(AdapterError, match="'q_proj' is a part of this model"):
        load_adapter(load_backbone(base), tmp_path / "adapter", leave_out=["q_proj"])


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_modules_are_merged_into_the_preset_of_a_fused_layer(bias, base, tmp_path):
    tuned = tuned_by_peft(
        tmp_path / "adapter", tmp_path, target_modules=["q_proj", "v_proj"], r=3, bias=bias
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset lacks the epsilon of the norms
        load_backbone(base).save_to_preset(str(tmp_path / "preset"))
    merge_folder(tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged")
    merged = load_backbone(tmp_path / "merged")
    for stage in merged.stages:
        for block in stage.blocks:
            block.norm1.epsilon = block.norm2.epsilon = 1e-3
    merged.norm.epsilon = 1e-3
    assert difference(merged, tuned) < BOUND


def test_a_base_that_an_adapter_was_not_trained_on_is_told(base, tmp_path):
    backbone = load_backbone(base)
    add_adapter(backbone, LoraConfig(rank=2, targets="attention_qkv"))
    save_adapter(backbone, tmp_path / "adapter")
    tiny_transformers("swin", tmp_path / "other", embed_dim=32)
    assert inspect_adapter(tmp_path / "adapter").kerora["fingerprint"]["samples"]
    with pytest.raises(AdapterError, match="another base"):
        merge_folder(tmp_path / "other", tmp_path / "adapter", tmp_path / "merged")
    merge_folder(base, tmp_path / "adapter", tmp_path / "merged")
