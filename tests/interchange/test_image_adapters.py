"""Adapters of image encoders under the names of other heads and of older versions."""

import json
import re
import warnings

import numpy as np
import pytest
from backends import once
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import BOUND, difference, randomize_peft
from benchmarks.tiny_transformers import keras_logits, tiny_transformers, torch_logits
from kerora.interchange import load_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

peft = pytest.importorskip("peft")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = once

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


def tuned_by_peft(base, folder, **fields):
    targets = [name for name in TARGETS if any(m.endswith(name) for m, _ in base.named_modules())]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, **fields)
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(folder)
    return tuned


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


@pytest.mark.parametrize("family", OLD)
def test_names_of_older_versions_are_read_and_merged(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    before = keras_logits(backbone)
    tuned = tuned_by_peft(base, tmp_path / "adapter", bias="lora_only")
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
    tuned = tuned_by_peft(classifier, tmp_path / "adapter", modules_to_save=["classifier"])
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
    tuned = tuned_by_peft(base, tmp_path / "adapter")
    merge_folder(tmp_path / "whole", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND
