"""What a model that kerora adapted says about its data and its weights."""

import keras
import pytest

import kerora
from kerora.training.fit_data import DataError

SHORT = {"question": "What is it?", "answer": "A cat."}


@pytest.fixture(scope="module")
def model():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    return model


def test_fit_says_which_rows_were_lost(model):
    rows = [SHORT] * 4
    cut = {"question": "What is it?", "answer": "A cat " * 60}
    no_answer = {"question": "What is it?", "answer": ""}
    with pytest.warns(UserWarning, match="1 examples were cut .*; 1 rows skipped: empty response"):
        model.fit([*rows, cut, no_answer], sequence_length=32, on_bad_row="skip", verbose=0)


@pytest.mark.parametrize("length", [0, "64", 1])
def test_a_row_has_a_whole_number_of_tokens(model, length):
    with pytest.raises(DataError, match="whole number of at least 2"):
        model.fit([SHORT], sequence_length=length, verbose=0)


def test_keras_hubs_own_adapter_files_are_not_written(model, tmp_path):
    with pytest.raises(kerora.AdapterError, match="save_adapter"):
        model.backbone.save_lora_weights(tmp_path / "x.lora.h5")
    with pytest.raises(kerora.AdapterError, match="no file"):
        model.backbone.load_lora_weights(tmp_path / "x.lora.h5")


def test_a_second_adapter_of_one_name_is_refused(model):
    with pytest.raises(kerora.AdapterError, match="remove_adapter"):
        model.backbone.enable_lora(2)


def test_the_default_learning_rate_is_that_of_what_trains():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    model.fit([SHORT] * 2, sequence_length=32, verbose=0)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(5e-4)
