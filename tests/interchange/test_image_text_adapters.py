"""Adapters of models that compare images with texts: tables, and one encoder's alone."""

import keras
import numpy as np
import pytest
from backends import once_uncompiled

from benchmarks.interchange import (
    BOUND,
    difference,
    load_in_peft,
    randomize_keras,
    randomize_peft,
)
from benchmarks.tiny_encoders import IMAGES
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_backbone

pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from peft_models import save_quietly, tuned_by_peft  # noqa: E402 - needs peft

pytestmark = once_uncompiled


def test_tables_of_both_encoders_go_both_ways_and_are_merged(tmp_path):
    base = tiny_transformers("metaclip_2", tmp_path / "base")
    model = load_backbone(tmp_path / "base")
    before = keras_logits(model)
    add_adapter(
        model, LoraConfig(rank=2, alpha=4, targets=["token_embedding", "position_embedding"])
    )
    randomize_keras(model)
    save_adapter(model, tmp_path / "adapter")
    tuned = load_in_peft(base, tmp_path / "adapter")
    assert np.abs(keras_logits(model) - before).max() > 0.3
    assert difference(model, tuned) < BOUND

    randomize_peft(tuned)
    save_quietly(tuned, tmp_path / "again")
    other = load_backbone(tmp_path / "base")
    load_adapter(other, tmp_path / "again")
    assert difference(other, tuned) < BOUND
    assert merge_folder(tmp_path / "base", tmp_path / "again", tmp_path / "merged") == 2
    merged = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    assert np.abs(torch_logits(merged) - torch_logits(tuned)).max() < BOUND


def test_positions_of_texts_are_refused_by_name(tmp_path):
    base = tiny_transformers("metaclip_2", tmp_path / "base")
    tuned_by_peft(base, tmp_path / "adapter", target_modules=["position_embedding"])
    with pytest.raises(AdapterError, match=r"text_model\.embeddings\.position_embedding"):
        load_adapter(load_backbone(tmp_path / "base"), tmp_path / "adapter")


def test_an_adapter_of_one_encoder_below_its_projection(tmp_path):
    tiny_transformers("metaclip_2", tmp_path / "base")
    half = transformers.MetaClip2VisionModelWithProjection.from_pretrained(tmp_path / "base")
    targets = ["q_proj", "fc2", "visual_projection"]
    tuned = tuned_by_peft(half.eval(), tmp_path / "adapter", target_modules=targets)
    model = load_backbone(tmp_path / "base")

    def embeddings():
        return keras.ops.convert_to_numpy(model.get_vision_embeddings(IMAGES))

    before = embeddings()
    load_adapter(model, tmp_path / "adapter")
    assert np.abs(embeddings() - before).max() > 0.3
    with torch.no_grad():
        expected = tuned(pixel_values=torch.tensor(IMAGES.transpose(0, 3, 1, 2))).image_embeds
    np.testing.assert_allclose(embeddings(), expected.numpy(), atol=BOUND)


def test_an_adapter_that_could_be_of_either_encoder_is_refused(tmp_path):
    tiny_transformers("metaclip_2", tmp_path / "base")
    bare = transformers.MetaClip2TextModel.from_pretrained(tmp_path / "base").eval()
    tuned_by_peft(bare, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"no layer for 2 of the 2 adapted modules: encoder\."):
        load_adapter(load_backbone(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="the base has 2 of that name"):
        merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
