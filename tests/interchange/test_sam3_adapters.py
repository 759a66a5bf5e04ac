"""Adapters of SAM 3's detector, alone or inside a video model."""

import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import (
    BOUND,
    difference,
    export_difference,
    import_difference,
    randomize_keras,
)
from benchmarks.tiny_logits import keras_logits
from benchmarks.tiny_sam3 import as_video_model
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.adapters.targets import select
from kerora.interchange import huggingface_weights, load_adapter, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

pytest.importorskip("peft")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from peft_models import tuned_by_peft  # noqa: E402 - needs peft

pytestmark = once_uncompiled
UNUSED = "text_encoder.text_projection"


@pytest.mark.parametrize("compared", [export_difference, import_difference])
def test_an_adapter_goes_to_peft_and_comes_back(compared, tmp_path):
    found, changed = compared("sam3", tmp_path)
    assert changed > 0.5
    assert found < BOUND


def test_every_linear_layer_of_the_other_side_is_one_here(tmp_path):
    reference = tiny_transformers("sam3", tmp_path)
    backbone = load_backbone(tmp_path)
    weights = huggingface_weights(backbone)
    linear = {n for n, module in reference.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = [candidate.layer for candidate in select(backbone, "all-linear")]
    assert {weights[id(la), "kernel"][0].module for la in layers} == linear - {UNUSED}
    tensors = {weight.name for filling in weights.values() for weight in filling}
    assert tensors <= {*reference.state_dict()}


def test_what_peft_trained_and_no_detector_uses_is_left_out_by_name(tmp_path):
    base = tiny_transformers("sam3", tmp_path / "base")
    tuned = tuned_by_peft(base, tmp_path / "adapter", target_modules=["text_projection"])
    backbone = load_backbone(tmp_path / "base")
    with pytest.raises(AdapterError, match=rf"no layer for 1 of the 2 .*{UNUSED}"):
        load_adapter(backbone, tmp_path / "adapter")
    before = keras_logits(backbone)
    load_adapter(backbone, tmp_path / "adapter", leave_out=[UNUSED])
    assert np.abs(keras_logits(backbone) - before).max() > 0.1
    assert difference(backbone, tuned) < BOUND


@pytest.mark.parametrize("within", ["", "detector_model."])
def test_an_adapter_of_a_video_model(within, tmp_path):
    base = tiny_transformers("sam3", tmp_path / "detector")
    as_video_model(tmp_path / "detector", tmp_path / "video")
    targets = ["q_proj", "v_proj", "fc1", "text_projection", "layer1"]
    exclude = UNUSED.replace(".", r"\.")
    tuned = tuned_by_peft(
        base,
        tmp_path / "adapter",
        target_modules=targets,
        exclude_modules=exclude,
        bias="lora_only",
    )
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    start = "base_model.model."
    tensors = {start + within + n.removeprefix(start): t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    backbone = load_backbone(tmp_path / "video")
    load_adapter(backbone, tmp_path / "adapter")
    assert difference(backbone, tuned) < BOUND
    merge_folder(tmp_path / "video", tmp_path / "adapter", tmp_path / "merged")
    assert difference(load_backbone(tmp_path / "merged"), tuned) < BOUND
    names = [{*load_file(tmp_path / f / "model.safetensors")} for f in ("video", "merged")]
    assert names[0] == names[1]


@pytest.mark.parametrize("table", ["query_embed", "token_embedding"])
def test_its_tables_are_refused_by_name(table, tmp_path):
    tiny_transformers("sam3", tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    add_adapter(backbone, LoraConfig(rank=2, targets=[table]))
    randomize_keras(backbone)
    with pytest.raises(AdapterError, match=rf"no way to adapt the table '.*{table}'"):
        save_adapter(backbone, tmp_path / "adapter")
