"""Adapters that PEFT trained below a head that the model does not have."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import (
    BOUND,
    difference,
    load_in_peft,
    randomize_keras,
    randomize_peft,
)
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.interchange import load_adapter, save_adapter
from kerora.models.loading import load_backbone, load_task

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# The name of the encoder below a classifier, and layers of the head that train with the adapter.
CLASSIFIERS = {
    "bert": ("bert", ["query", "value"], []),
    "roberta": ("roberta", ["query", "value"], []),
    "xlm_roberta": ("roberta", ["query", "key"], []),
    "albert": ("albert", ["query", "ffn"], []),
    "esm": ("esm", ["query", "value"], []),
    "distilbert": ("distilbert", ["q_lin", "ffn.lin1"], ["pre_classifier"]),
}


def classifier(family, folder, **fields):
    """A tiny base, saved without a head, and a PEFT classifier on it, saved to `adapter`."""
    tiny_transformers(family, folder / "base")
    _, targets, modules = CLASSIFIERS[family]
    kind = transformers.AutoModelForSequenceClassification
    base = kind.from_pretrained(folder / "base", num_labels=3).eval()
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=5,
        target_modules=targets,
        modules_to_save=modules or None,
        **fields,
    )
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(folder / "adapter")
    return tuned


def hidden_states(tuned, family):
    inner = getattr(tuned.base_model.model, CLASSIFIERS[family][0])
    return torch_logits(inner, IDS)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_an_encoder_reads_what_was_trained_below_a_classifier(family, tmp_path):
    tuned = classifier(family, tmp_path)
    backbone = load_backbone(tmp_path / "base")
    before = keras_logits(backbone)
    with pytest.raises(AdapterError, match=r"modules_to_save.*classifier.*leave_out"):
        load_adapter(backbone, tmp_path / "adapter")
    modules = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "classifier" in modules["modules_to_save"]
    load_adapter(backbone, tmp_path / "adapter", leave_out=modules["modules_to_save"])
    found = keras_logits(backbone)
    assert np.abs(found - before).max() > 0.1
    np.testing.assert_allclose(found, hidden_states(tuned, family), atol=BOUND)


def test_patterns_name_the_layers_as_the_file_does(tmp_path):
    tuned = classifier(
        "bert",
        tmp_path,
        bias="lora_only",
        rank_pattern={"bert.encoder.layer.1.attention.self.query": 2},
        alpha_pattern={r"bert\.encoder\.layer\.0\..*": 9},
    )
    backbone = load_backbone(tmp_path / "base")
    load_adapter(backbone, tmp_path / "adapter", leave_out=["classifier", "score"])
    np.testing.assert_allclose(keras_logits(backbone), hidden_states(tuned, "bert"), atol=BOUND)


@pytest.mark.parametrize(
    ("leave_out", "match"),
    [
        (["classifier"], r"modules_to_save.*'score'"),
        (["classifier", "score", "decoder"], "no module 'decoder'"),
        (["classifier", "score", "query"], "'query' is a part of this model"),
        (["classifier", "score", "bert"], "'bert' is a part of this model"),
    ],
)
def test_only_what_the_model_lacks_is_left_out_and_only_by_name(leave_out, match, tmp_path):
    classifier("bert", tmp_path)
    backbone = load_backbone(tmp_path / "base")
    count = len(backbone.weights)
    with pytest.raises(AdapterError, match=match):
        load_adapter(backbone, tmp_path / "adapter", leave_out=leave_out)
    assert len(backbone.weights) == count


def test_a_language_model_reads_what_was_trained_beside_a_classifier(tmp_path):
    tiny_transformers("llama", tmp_path / "base")
    kind = transformers.AutoModelForSequenceClassification
    base = kind.from_pretrained(tmp_path / "base", num_labels=3).eval()
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["q_proj", "v_proj"])
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    model = load_task(tmp_path / "base", preprocessor=None)
    load_adapter(model, tmp_path / "adapter", leave_out=["classifier", "score"])
    expected = torch_logits(tuned.base_model.model.model)
    found = model.backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, atol=BOUND)


def test_a_vision_tower_is_neither_targeted_nor_dropped_silently(tmp_path):
    base = tiny_transformers("gemma3_vision", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=2, targets="all-linear"))
    randomize_keras(model)
    save_adapter(model, tmp_path / "kerora")
    names = [name for name, _ in load_in_peft(base, tmp_path / "kerora").named_parameters()]
    assert sum("lora_A" in name for name in names) == 7 * 7
    assert not any("lora" in name and "language_model" not in name for name in names)

    base = tiny_transformers("gemma3_vision", tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules="all-linear")
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "both")
    other = load_task(tmp_path / "base", preprocessor=None)
    with pytest.raises(AdapterError, match=r"no layer for \d+ .*vision_tower.*leave_out"):
        load_adapter(other, tmp_path / "both")
    load_adapter(other, tmp_path / "both", leave_out=["vision_tower"])
    assert difference(other, tuned) < BOUND


@pytest.mark.parametrize("prefix", ["language_model.model.", "model."])
def test_a_language_model_reads_the_names_of_other_classes(prefix, tmp_path):
    base = tiny_transformers("gemma3_vision", tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=r".*language_model\..*_proj")
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {
        name.replace("model.language_model.", prefix): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    assert any(f"base_model.model.{prefix}layers" in name for name in tensors)
    model = load_task(tmp_path / "base", preprocessor=None)
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND
