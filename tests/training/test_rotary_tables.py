"""Rotary tables are made once per pass and equal each layer's own."""

import keras
import numpy as np
import pytest
from keras import ops
from keras_hub.layers import RotaryEmbedding
from tiny_backbones import tiny_backbone

from kerora.training.attention import training_attention
from kerora.training.rotary_tables import shared_rotary_tables

BACKEND = keras.backend.backend()


def rotated(layer, x, start_index=0):
    return ops.convert_to_numpy(layer(x, start_index=start_index))


def test_layers_of_different_configuration_keep_their_own_tables():
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 8)).astype("float32")
    layers = [RotaryEmbedding(max_wavelength=w, scaling_factor=f) for w, f in [(1e4, 1), (1e2, 2)]]
    expected = [rotated(layer, x) for layer in layers]
    shifted = rotated(layers[0], x, start_index=3)
    with shared_rotary_tables():
        for layer, values in zip(layers * 2, expected * 2, strict=True):
            np.testing.assert_allclose(rotated(layer, x), values, atol=1e-6)
        np.testing.assert_allclose(rotated(layers[0], x, start_index=3), shifted, atol=1e-6)
        longer = np.concatenate([x, x], axis=1)
        np.testing.assert_allclose(rotated(layers[0], longer)[:, :6], expected[0], atol=1e-6)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow's layers keep their own tables")
def test_one_table_for_all_layers(monkeypatch):
    backbone = tiny_backbone("llama", num_layers=3)
    x = {"token_ids": np.ones((1, 12), "int32"), "padding_mask": np.ones((1, 12), "int32")}
    made = []
    with training_attention(backbone, x["padding_mask"]):
        backbone(x)
    layer_class = type(backbone.transformer_layers[0]._self_attention_layer.rotary_embedding_layer)
    stock = layer_class._get_inverse_freq
    monkeypatch.setattr(
        layer_class, "_get_inverse_freq", lambda *a: made.append(1) or stock(*a), raising=True
    )
    with training_attention(backbone, x["padding_mask"]):
        backbone(x)
    assert len(made) == 1
    backbone(x)
    assert len(made) == 1 + 6


@pytest.mark.skipif(BACKEND != "jax", reason="reads XLA's compiled step")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_step_has_no_square_mask_and_no_table_to_compute(family):
    import jax

    length = 192
    backbone = tiny_backbone(family, num_layers=2, **({} if family == "llama" else WINDOW))
    trainable = [v.value for v in backbone.trainable_variables]
    rest = [v.value for v in backbone.non_trainable_variables]
    ones = np.ones((2, length), "int32")

    def loss(trainable, rest, tokens, ids):
        with training_attention(backbone, ids):
            x = {"token_ids": tokens, "padding_mask": ids}
            hidden, _ = backbone.stateless_call(trainable, rest, x)
        return (hidden * hidden).sum()

    text = jax.jit(jax.grad(loss)).lower(trainable, rest, ones, ones).compile().as_text()
    assert f"{length},{length}]" not in text
    assert " cosine(" not in text and " sine(" not in text
    # The plan of the blocks is one: an order and its inverse.
    assert text.count(" sort(") <= 2


WINDOW = {"sliding_window_size": 80}
