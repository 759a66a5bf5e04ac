"""Packed rows give each example the values that it has in a row of its own."""

import inspect
import sys

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from keras_hub.src.layers.modeling import transformer_layer_utils
from tiny_backbones import VOCABULARY, tiny_backbone

from kerora.models.families import packing_support
from kerora.training import segments
from kerora.training.positions import with_positions

PACKED = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "llama",
    "llama3",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "phi3_su",
    "gpt_oss",
    "smollm3",
    "qwen_moe",
    "qwen3_moe",
    "gpt_neo_x",
    "bloom",
    "gpt2",
    "opt",
]
LENGTHS = (7, 9, 5)
ROW = 24


def hidden_states(backbone, token_ids, padding_mask):
    inputs = {"token_ids": ops.convert_to_tensor(token_ids, "int32")}
    inputs["padding_mask"] = ops.convert_to_tensor(padding_mask, "int32")
    return ops.convert_to_numpy(backbone(with_positions(backbone, inputs)))


def examples():
    rng = np.random.default_rng(1)
    return [rng.integers(1, VOCABULARY, n) for n in LENGTHS]


def packed_row():
    tokens, ids = np.zeros((1, ROW), "int32"), np.zeros((1, ROW), "int32")
    start = 0
    for index, example in enumerate(examples(), start=1):
        tokens[0, start : start + len(example)] = example
        ids[0, start : start + len(example)] = index
        start += len(example)
    return tokens, ids


def alone(example):
    tokens, mask = np.zeros((1, ROW), "int32"), np.zeros((1, ROW), "int32")
    tokens[0, : len(example)] = example
    mask[0, : len(example)] = 1
    return tokens, mask


@pytest.mark.parametrize("family", PACKED)
def test_packed_example_equals_the_example_alone(family):
    backbone = tiny_backbone(family)
    assert packing_support(backbone, ROW)[0]
    tokens, ids = packed_row()
    with segments.segmented(ids):
        packed = hidden_states(backbone, tokens, ids)
    start = 0
    for example in examples():
        expected = hidden_states(backbone, *alone(example))[0, : len(example)]
        actual = packed[0, start : start + len(example)]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
        start += len(example)


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt2"])
def test_one_example_in_a_row_is_an_ordinary_padding_mask(family):
    backbone = tiny_backbone(family)
    tokens, mask = alone(examples()[1])
    plain = hidden_states(backbone, tokens, mask)
    with segments.segmented(mask):
        segmented = hidden_states(backbone, tokens, mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(segmented[real], plain[real], atol=1e-6 * np.abs(plain).max())


def test_falcon_would_be_wrong_and_is_refused():
    backbone = tiny_backbone("falcon")
    supported, reason = packing_support(backbone)
    assert not supported and "padding mask" in reason
    tokens, ids = packed_row()
    with segments.segmented(ids):
        packed = hidden_states(backbone, tokens, ids)
    example = examples()[1]
    expected = hidden_states(backbone, *alone(example))[0, : len(example)]
    assert np.abs(packed[0, LENGTHS[0] :][: len(example)] - expected).max() > 1e-3


def test_generation_is_untouched_once_installed(monkeypatch):
    with segments.segmented(None):
        pass
    backbone = tiny_backbone("gemma", num_layers=1)
    model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    prompt = np.zeros((2, 8), "int32")
    prompt[0, :5], prompt[1, :3] = examples()[0][:5], examples()[1][:3]
    inputs = {"token_ids": prompt, "padding_mask": (prompt > 0).astype("int32")}
    installed = model.generate(inputs, stop_token_ids=[VOCABULARY - 1])["token_ids"]
    block = "keras_hub.src.models.gemma.gemma_decoder_block"
    monkeypatch.setattr(f"{block}.merge_padding_and_attention_mask", segments._stock_merge)
    model.generate_function = None
    stock = model.generate(inputs, stop_token_ids=[VOCABULARY - 1])["token_ids"]
    np.testing.assert_array_equal(ops.convert_to_numpy(installed), ops.convert_to_numpy(stock))


def test_positions_restart_with_each_segment():
    ids = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]])
    expected = [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3]]
    np.testing.assert_array_equal(ops.convert_to_numpy(segments.restarted_positions(ids)), expected)


def test_nothing_is_left_active_after_an_error():
    with pytest.raises(RuntimeError), segments.segmented(np.ones((1, 4))):
        raise RuntimeError
    assert segments.current_segment_ids() is None


def test_kerashub_still_funnels_its_masks_through_one_function():
    merge = segments._stock_merge
    assert list(inspect.signature(merge).parameters) == ["inputs", "padding_mask", "attention_mask"]
    position_call = inspect.signature(segments._stock_position_call).parameters
    assert list(position_call) == ["self", "inputs", "start_index", "positions"]
    assert transformer_layer_utils.__name__ in sys.modules
    with segments.segmented(np.ones((1, 4), "int32")):
        for name in ("gemma.gemma_decoder_block", "gemma3.gemma3_decoder_block"):
            module = sys.modules[f"keras_hub.src.models.{name}"]
            assert module.merge_padding_and_attention_mask is segments._merge
    left = [
        name
        for name, module in sys.modules.items()
        if name.startswith("keras_hub.")
        and getattr(module, "merge_padding_and_attention_mask", None) is merge
    ]
    assert not left, f"these modules kept KerasHub's own function: {left}"


def test_segment_mask_matches_its_definition():
    ids = np.array([[1, 2, 2, 0]])
    expected = [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]
    mask = segments.segment_mask(ids)
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), expected)
    assert keras.backend.standardize_dtype(mask.dtype) == "int32"
