"""BLIP-2, whose backbone takes an image and a text, with an OPT or a Flan-T5."""

import json

import keras
import numpy as np
import pytest
from backends import once_uncompiled
from safetensors.numpy import load_file, save_file

from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_backbone

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled

FAMILIES = ["blip2_opt", "blip2_t5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_seen(family, tmp_path):
    reference = tiny_transformers(family, tmp_path)
    mask = np.ones_like(IDS)
    mask[:, 15:] = 0
    found = keras_logits(load_backbone(tmp_path), IDS, mask)
    expected = torch_logits(reference, IDS, mask)
    # The decoder of a T5 reads all of its own row; of an OPT's the end means nothing.
    length = IDS.shape[1] if family == "blip2_t5" else 15
    np.testing.assert_allclose(found[:, :length], expected[:, :length], atol=1e-4)


def test_a_head_of_its_own_is_read(tmp_path):
    # So published folders are stored; transformers 5 makes new models with one table.
    tiny_transformers("blip2_t5", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "language_model.lm_head.weight" not in tensors
    head = tensors["language_model.shared.weight"][::-1].copy()
    save_file({**tensors, "language_model.lm_head.weight": head}, file, {"format": "pt"})
    reference = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(backbone.language_model.lm_head.kernel), head.T)


def test_the_type_of_the_weights_is_that_of_all_parts(tmp_path):
    tiny_transformers("blip2_t5", tmp_path)
    backbone = load_backbone(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in backbone.weights} == {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("family", "part", "field", "value"),
    [
        ("blip2_opt", "vision_config", "hidden_act", "quick_gelu"),
        ("blip2_opt", "vision_config", "qkv_bias", False),
        ("blip2_opt", "qformer_config", "hidden_act", "relu"),
        ("blip2_opt", "qformer_config", "use_qformer_text_input", True),
        ("blip2_opt", "qformer_config", "num_hidden_layers", 10**6),
        ("blip2_opt", "text_config", "activation_function", "gelu"),
        ("blip2_opt", "text_config", "do_layer_norm_before", False),
        ("blip2_opt", "text_config", "word_embed_proj_dim", 16),
        ("blip2_opt", "text_config", "model_type", "llama"),
        ("blip2_t5", "text_config", "feed_forward_proj", "relu"),
        ("blip2_t5", "text_config", "num_decoder_layers", 1),
        ("blip2_t5", "text_config", "relative_attention_num_buckets", 16),
        ("blip2_t5", "text_config", "scale_decoder_outputs", True),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(family, part, field, value, tmp_path):
    tiny_transformers(family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=rf"{part}\.{field}.*{value}"):
        load_backbone(tmp_path)


def test_a_t5_that_scales_what_goes_into_its_head_is_refused(tmp_path):
    text = {**SEEING["blip2_t5"][1]["text_config"], "tie_word_embeddings": True}
    tiny_transformers("blip2_t5", tmp_path, text_config=text)
    with pytest.raises(ModelSourceError, match=r"scale_decoder_outputs.*False.*True"):
        load_backbone(tmp_path)
