"""Backbones that take the positions of tokens as an input are trained on text like the others."""

import keras
import keras_hub
import numpy as np
import pytest
from tiny_backbones import tiny_backbone

import kerora
from kerora.training.positions import with_positions

ROWS = [
    {"prompt": "What is a cat?", "response": "A small animal."},
    {"prompt": "What is a dog?", "response": "A larger animal with four legs."},
] * 4


@pytest.fixture(scope="module")
def model():
    preprocessor = kerora.from_preset("tiny_gemma", load_weights=False).preprocessor
    size = preprocessor.tokenizer.vocabulary_size()
    backbone = tiny_backbone("gemma4", vocabulary_size=size, vocab_size_per_layer_input=size)
    task = keras_hub.models.Gemma4CausalLM(backbone=backbone, preprocessor=preprocessor)
    model = kerora.adapt(task)
    model.backbone.enable_lora(4, targets="all-linear")
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def test_positions_are_given_where_they_are_asked_for(model):
    inputs = {name: np.ones((2, 3), "int32") for name in ("token_ids", "padding_mask")}
    positions = with_positions(model.backbone, inputs)["position_ids"]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(positions), [[0, 1, 2]] * 2)
    own = {**inputs, "position_ids": np.zeros((2, 3), "int32")}
    assert with_positions(model.backbone, own) is own
    assert with_positions(tiny_backbone("gemma"), inputs) is inputs


def test_packed_rows_have_the_loss_of_rows_of_their_own(model):
    packed, alone = (
        model.evaluate(ROWS, sequence_length=32, packing=packing, verbose=0, return_dict=True)
        for packing in (True, False)
    )
    np.testing.assert_allclose(packed["loss"], alone["loss"], rtol=1e-5)


def test_the_loss_falls(model):
    history = model.fit(ROWS, sequence_length=32, epochs=4, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
