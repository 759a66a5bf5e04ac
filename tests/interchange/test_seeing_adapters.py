"""Adapters of models that take an image and a text."""

import re

import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import (
    BOUND,
    KERORA_TARGETS,
    difference,
    load_in_peft,
    randomize_keras,
    randomize_peft,
)
from benchmarks.tiny_logits import keras_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.adapters.targets import select
from kerora.interchange import huggingface_weights, load_adapter, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

pytest.importorskip("peft")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from peft_models import save_quietly, tuned_by_peft  # noqa: E402 - needs peft

pytestmark = once_uncompiled


def modules(weights, layers):
    return {weight.module for layer in layers for weight in weights[id(layer), "kernel"]}


@pytest.mark.parametrize("family", SEEING)
def test_every_linear_layer_of_the_other_side_is_one_here(family, tmp_path):
    reference = tiny_transformers(family, tmp_path)
    backbone = load_backbone(tmp_path)
    weights = huggingface_weights(backbone)
    linear = {
        name
        for name, module in reference.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    }
    layers = [c.layer for c in select(backbone, KERORA_TARGETS[family])]
    assert modules(weights, layers) == linear
    tensors = {weight.name for filling in weights.values() for weight in filling}
    assert tensors <= {*reference.state_dict()}


@pytest.mark.parametrize("family", SEEING)
def test_what_is_adapted_without_being_named_is_of_the_text_model(family, tmp_path):
    tiny_transformers(family, tmp_path)
    backbone = load_backbone(tmp_path)
    weights = huggingface_weights(backbone)
    names = modules(weights, [c.layer for c in select(backbone, "all-linear")])
    assert len(names) >= 12
    assert all(re.match(r"(model\.)?language_(?!model\.lm_head)", name) for name in names)
    by_default = modules(weights, [c.layer for c in select(backbone, None)])
    assert by_default <= names
    assert {name.rpartition(".")[2] for name in by_default} in ({"q_proj", "v_proj"}, {"q", "v"})


# What earlier versions of `transformers` called PaliGemma's modules.
OLD_NAMES = {
    "4.51": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal": "multi_modal",
    },
    "4.57": {"model.vision_tower.": "model.vision_tower.vision_model."},
}


@pytest.mark.parametrize("version", OLD_NAMES)
def test_names_of_older_versions_are_read_and_merged(version, tmp_path):
    base = tiny_transformers("paligemma", tmp_path / "base")
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=r".*(_proj|fc1|linear)")
    rename(tmp_path / "adapter", OLD_NAMES[version])
    backbone = load_backbone(tmp_path / "base")
    load_adapter(backbone, tmp_path / "adapter")
    assert difference(backbone, tuned) < BOUND
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND


def test_an_adapter_is_merged_into_files_of_older_versions(tmp_path):
    base = tiny_transformers("paligemma", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {
        re.sub("^vision_tower", r"\g<0>.vision_model", n): t for n, t in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=r".*(q_proj|fc1|linear)")
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_adapted_tables_go_both_ways_and_are_merged(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    before = keras_logits(backbone)
    targets = ["token_embedding", "position_embedding", "query"]
    add_adapter(backbone, LoraConfig(rank=2, alpha=4, targets=targets))
    randomize_keras(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    tuned = load_in_peft(base, tmp_path / "adapter")
    assert np.abs(keras_logits(backbone) - before).max() > 1
    assert difference(backbone, tuned) < BOUND

    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND

    randomize_peft(tuned)
    save_quietly(tuned, tmp_path / "again")
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "again")
    assert difference(other, tuned) < BOUND


def test_a_table_of_positions_is_merged_alone(tmp_path):
    # No head is tied to it, as one is to the table of tokens.
    base = tiny_transformers("paligemma", tmp_path / "base")
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=["position_embedding"])
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("blip2_opt", "token_embedding"),
        ("blip2_opt", "position_embedding"),
        ("blip2_t5", "token_embedding"),
    ],
)
def test_tables_of_blip2_are_refused_by_name(family, targets, tmp_path):
    tiny_transformers(family, tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    add_adapter(backbone, LoraConfig(rank=2, targets=targets))
    with pytest.raises(AdapterError, match=r"the table '(language|vision)_model\.\S*'"):
        save_adapter(backbone, tmp_path / "adapter")


def rename(folder, renames):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for new, old in renames.items():
        start = "base_model.model."
        assert any(name.startswith(start + new) for name in tensors)
        tensors = {re.sub(f"^{start}{new}", start + old, name): t for name, t in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
