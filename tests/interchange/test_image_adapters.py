"""Adapters of image encoders under the names of other heads and of older versions."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import BOUND, difference, randomize_keras
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.adapters.host import get_adapter
from kerora.adapters.targets import select
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

pytest.importorskip("peft")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from peft_models import tuned_by_peft  # noqa: E402 - needs peft

pytestmark = once_uncompiled

# What transformers 4 called the modules, as files still do.
OLD_ENDINGS = {
    "attention.q_proj": "attention.attention.query",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
OLD = {
    "vit": {
        **OLD_ENDINGS,
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "layers.": "encoder.layer.",
    },
    "dinov2": OLD_ENDINGS,
    "dinov3": {"model.layer.": "layer."},
    "swin": {
        "attention.q_proj": "attention.self.query",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
}
TARGETS = ["q_proj", "v_proj", "o_proj", "fc1", "fc2", "up_proj"]


def tuned_on_targets(base, folder, **fields):
    """A PEFT model with a random adapter on what of `TARGETS` it has, saved to `folder`."""
    targets = [name for name in TARGETS if any(m.endswith(name) for m, _ in base.named_modules())]
    return tuned_by_peft(base, folder, **{"target_modules": targets, **fields})


def rename(folder, renames):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for new, old in renames.items():
        assert any(new in name for name in tensors)
        tensors = {re.sub(re.escape(new), old, name): t for name, t in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(
        {name.split(".lora_")[0].split(".", 2)[2] for name in tensors}
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))


def loaded_as_one_adapter(tmp_path, tuned, rank):
    """The base with PEFT's adapter, which is of this rank here and computes the same."""
    backbone = load_backbone(tmp_path / "base")
    before = keras_logits(backbone)
    load_adapter(backbone, tmp_path / "adapter")
    assert adapter_configs(backbone)["default"].rank == rank
    assert np.abs(keras_logits(backbone) - before).max() > 0.1
    assert difference(backbone, tuned) < BOUND
    return backbone


@pytest.mark.parametrize("family", OLD)
def test_names_of_older_versions_are_read_and_merged(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    before = keras_logits(backbone)
    tuned = tuned_on_targets(base, tmp_path / "adapter", bias="lora_only")
    rename(tmp_path / "adapter", OLD[family])
    load_adapter(backbone, tmp_path / "adapter")
    assert np.abs(keras_logits(backbone) - before).max() > 0.5
    assert difference(backbone, tuned) < BOUND
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "swin"])
def test_an_adapter_of_a_classifier(family, tmp_path):
    tiny_transformers(family, tmp_path / "bare")
    kind = transformers.AutoModelForImageClassification
    classifier = kind.from_pretrained(tmp_path / "bare", num_labels=3).eval()
    classifier.save_pretrained(tmp_path / "whole")
    tuned = tuned_on_targets(classifier, tmp_path / "adapter", modules_to_save=["classifier"])
    backbone = load_backbone(tmp_path / "whole")
    load_adapter(backbone, tmp_path / "adapter", leave_out=["classifier"])
    inner = getattr(tuned.base_model.model, family)
    assert difference(backbone, inner) < BOUND

    merge_folder(tmp_path / "whole", tmp_path / "adapter", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()
    assert np.abs(torch_logits(merged) - torch_logits(tuned)).max() < BOUND
    assert difference(load_backbone(tmp_path / "merged"), inner) < BOUND


def test_an_adapter_of_the_encoder_goes_into_a_classifier(tmp_path):
    base = tiny_transformers("vit", tmp_path / "bare")
    kind = transformers.AutoModelForImageClassification
    kind.from_pretrained(tmp_path / "bare").save_pretrained(tmp_path / "whole")
    tuned = tuned_on_targets(base, tmp_path / "adapter")
    merge_folder(tmp_path / "whole", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND


# Swin: one layer of KerasHub's, `attention_qkv`, is three modules of `transformers`.
ATTENTION = "encoder.layers.0.blocks.0.attention"


def tiny_swin(tmp_path, **overrides):
    return tiny_transformers("swin", tmp_path / "base", **overrides)


@pytest.mark.parametrize(
    ("targets", "fields", "rank"),
    [
        (["k_proj"], {}, 3),
        (["q_proj", "v_proj"], {"bias": "lora_only"}, 6),
        (
            ["q_proj", "k_proj", "v_proj", "fc2"],
            {
                "use_rslora": True,
                "rank_pattern": {"k_proj": 5, "fc2": 2, r"layers\.1\..*v_proj": 1},
                "alpha_pattern": {"v_proj": 9},
            },
            11,
        ),
    ],
)
def test_modules_that_peft_trained_become_one_adapter(targets, fields, rank, tmp_path):
    base = tiny_swin(tmp_path)
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=targets, **fields)
    backbone = loaded_as_one_adapter(tmp_path, tuned, rank)

    # What is saved again is the same, though the modules now share their A.
    save_adapter(backbone, tmp_path / "again")
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "again")
    assert adapter_configs(other)["default"].rank == rank
    assert difference(other, tuned) < BOUND


@pytest.mark.parametrize(("targets", "count"), [(None, 4), ("all-linear", 17)])
def test_a_fused_layer_comes_back_as_it_was(targets, count, tmp_path):
    tiny_swin(tmp_path)
    backbone = load_backbone(tmp_path / "base")
    assert len(select(backbone, targets)) == count
    add_adapter(backbone, LoraConfig(rank=3, alpha=5, targets=targets, bias="lora_only"))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert factors[f"base_model.model.{ATTENTION}.k_proj.lora_B.weight"].shape == (16, 3)
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "adapter")
    assert adapter_configs(other) == adapter_configs(backbone)
    for mine, again in zip(backbone.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(again)
        )


def test_a_fused_layer_without_biases(tmp_path):
    base = tiny_swin(tmp_path, qkv_bias=False)
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=["k_proj"], bias="all")
    backbone = load_backbone(tmp_path / "base")
    load_adapter(backbone, tmp_path / "adapter")
    assert difference(backbone, tuned) < BOUND


def test_ranks_that_are_more_together_than_the_layers_own(tmp_path):
    targets = ["q_proj", "k_proj", "v_proj"]
    tuned = tuned_by_peft(tiny_swin(tmp_path), tmp_path / "adapter", target_modules=targets, r=6)
    backbone = load_backbone(tmp_path / "base")
    load_adapter(backbone, tmp_path / "adapter")
    assert adapter_configs(backbone)["default"].rank == 18
    assert difference(backbone, tuned) < BOUND


def test_a_part_of_a_fused_layer_cannot_be_left_out(tmp_path):
    tuned_by_peft(tiny_swin(tmp_path), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="'q_proj' is a part of this model"):
        load_adapter(load_backbone(tmp_path / "base"), tmp_path / "adapter", leave_out=["q_proj"])


def test_modules_are_merged_into_the_preset_of_a_fused_layer(tmp_path):
    fields = {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}
    tuned = tuned_by_peft(tiny_swin(tmp_path), tmp_path / "adapter", **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset lacks the epsilon of the norms
        load_backbone(tmp_path / "base").save_to_preset(str(tmp_path / "preset"))
    merge_folder(tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged")
    merged = load_backbone(tmp_path / "merged")
    for stage in merged.stages:
        for block in stage.blocks:
            block.norm1.epsilon = block.norm2.epsilon = 1e-3
    merged.norm.epsilon = 1e-3
    assert difference(merged, tuned) < BOUND


@pytest.mark.parametrize(
    "family", ["vit", "dinov2", "dinov2_swiglu", "dinov3", "metaclip_2", "blip2_opt"]
)
def test_adapters_are_merged_into_presets(family, tmp_path):
    tiny_transformers(family, tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset lacks what the folder's loader mends
        load_backbone(tmp_path / "base").save_to_preset(str(tmp_path / "preset"))
    backbone = load_backbone(tmp_path / "preset")
    plain = keras_logits(backbone)
    add_adapter(backbone, LoraConfig(rank=2, targets="all-linear"))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    merge_folder(tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged")
    expected = keras_logits(backbone)
    assert np.abs(expected - plain).max() > 0.1
    assert np.abs(keras_logits(load_backbone(tmp_path / "merged")) - expected).max() < BOUND


# DINOv2 with SwiGLU: one layer of KerasHub's, `weights_in`, is two modules of `transformers`, and
# one tensor of its files.
GATED = "encoder.layer.0.mlp"


@pytest.mark.parametrize(
    ("targets", "fields", "rank"),
    [
        (["up_proj"], {"bias": "lora_only"}, 3),
        (
            ["gate_proj", "up_proj", "down_proj"],
            {
                "bias": "all",
                "use_rslora": True,
                "rank_pattern": {"gate_proj": 5, r"layer\.1\..*up_proj": 1},
                "alpha_pattern": {"up_proj": 9},
            },
            8,
        ),
    ],
)
def test_halves_that_peft_trained_are_loaded_and_merged(targets, fields, rank, tmp_path):
    base = tiny_transformers("dinov2_swiglu", tmp_path / "base")
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=targets, **fields)
    loaded_as_one_adapter(tmp_path, tuned, rank)

    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND
    merged = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    assert np.abs(torch_logits(merged) - torch_logits(tuned)).max() < BOUND


def test_one_adapter_becomes_those_of_two_halves(tmp_path):
    tiny_transformers("dinov2_swiglu", tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    add_adapter(backbone, LoraConfig(rank=3, alpha=5, targets=["weights_in"]))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = [f"base_model.model.{GATED}.{half}_proj" for half in ("gate", "up")]
    gate, up = (factors[f"{name}.lora_A.weight"] for name in names)
    np.testing.assert_array_equal(gate, up)
    kernel_b = keras.ops.convert_to_numpy(
        get_adapter(backbone.encoder.layers[0].mlp.weights_in, "default").kernel_b
    )
    halves = np.concatenate([factors[f"{name}.lora_B.weight"] for name in names])
    np.testing.assert_array_equal(halves.T, kernel_b)
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "adapter")
    assert adapter_configs(other) == adapter_configs(backbone)
    np.testing.assert_array_equal(keras_logits(other), keras_logits(backbone))


def whole_again(folder):
    """Make of the halves' adapters, which share their A, that of transformers 4's one module."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".gate_proj." in name]:
        halves = [tensors.pop(name), tensors.pop(name.replace("gate_proj", "up_proj"))]
        whole = halves[0] if ".lora_A" in name else np.concatenate(halves)
        tensors[name.replace("gate_proj", "weights_in")] = whole
    old = {name.replace("down_proj", "weights_out"): tensor for name, tensor in tensors.items()}
    save_file(old, file, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    names = ("weights_in", "weights_out")
    config |= {"target_modules": list(names), "r": 9, "lora_alpha": 27}
    config |= {"rank_pattern": dict.fromkeys(names, 3), "alpha_pattern": dict.fromkeys(names, 5)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_the_one_module_of_older_versions(tmp_path):
    tiny_transformers("dinov2_swiglu", tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    targets = ["weights_in", "weights_out"]
    add_adapter(backbone, LoraConfig(rank=3, alpha=5, targets=targets, bias="lora_only"))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    whole_again(tmp_path / "adapter")
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "adapter")
    assert adapter_configs(other)["default"].rank == 3
    assert np.abs(keras_logits(other) - keras_logits(backbone)).max() < BOUND
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = keras_logits(load_backbone(tmp_path / "merged"))
    assert np.abs(merged - keras_logits(backbone)).max() < BOUND

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset lacks the epsilon of the norms
        load_backbone(tmp_path / "base").save_to_preset(str(tmp_path / "preset"))
    merge_folder(tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged_preset")
    adapted = load_backbone(tmp_path / "preset")
    load_adapter(adapted, tmp_path / "adapter")
    merged = keras_logits(load_backbone(tmp_path / "merged_preset"))
    assert np.abs(merged - keras_logits(adapted)).max() < BOUND


def test_a_fused_layer_is_merged_into_its_own_base_alone(tmp_path):
    tiny_swin(tmp_path)
    backbone = load_backbone(tmp_path / "base")
    add_adapter(backbone, LoraConfig(rank=2, targets="all-linear"))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    tiny_transformers("swin", tmp_path / "other", mlp_ratio=3.0)
    with pytest.raises(AdapterError, match="another base"):
        merge_folder(tmp_path / "other", tmp_path / "adapter", tmp_path / "merged")

    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = keras_logits(load_backbone(tmp_path / "merged"))
    assert np.abs(merged - keras_logits(backbone)).max() < BOUND
