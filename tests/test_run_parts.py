"""What a recipe's `auto` comes to."""

import warnings

import keras
import pytest

import kerora
from kerora.data import DataError
from kerora.recipe import ModelRecipe, Recipe
from kerora.run_parts import load_model, prepare_data


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    folders = {}
    for dtype in ("float32", "bfloat16"):
        folders[dtype] = str(tmp_path_factory.mktemp(dtype))
        kerora.from_preset("tiny_gemma", dtype=dtype).save_to_preset(folders[dtype])
    return folders


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_cpu_gets_bfloat16_where_it_is_quick_and_rounds_nothing(
    presets, stored, multiplies, full, monkeypatch
):
    monkeypatch.setattr("kerora.run_parts.multiplies_bfloat16", lambda: multiplies)
    model = load_model(ModelRecipe(source=presets[stored]), full=full)
    expected = stored == "bfloat16" and multiplies and not full
    kernel = model.backbone.token_embedding.embeddings
    assert kernel.dtype == ("bfloat16" if expected else "float32")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_preset_with_its_tokenizer_is_quantised(presets, stored):
    model = load_model(ModelRecipe(source=presets[stored], dtype=stored, quantize="int8"))
    kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
    layers = [layer for layer in model.backbone._flatten_layers() if isinstance(layer, kinds)]
    assert {layer.quantization_mode for layer in layers} == {"int8"}
    model.backbone.enable_lora(2)
    rows = [{"instruction": "Say hello.", "response": "Hello."}] * 4
    losses = model.fit(rows, epochs=4, batch_size=4, sequence_length=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def data_of(folder, *lines, model):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{line}\n" for line in lines))
    sections = {"model": {"source": "tiny_gemma"}, "data": {"train": str(rows)}}
    return prepare_data(Recipe.model_validate(sections), model)


def test_of_few_rows_one_is_held_out(tmp_path):
    model = load_model(ModelRecipe(source="tiny_gemma"))
    good = '{"instruction": "Say hello.", "response": "Hello."}'
    data = data_of(tmp_path, *[good] * 7, model=model)
    assert (data.batches.report().rows, data.validation.report().rows) == (6, 1)
    with pytest.raises(DataError, match=r"data\.validation: A share of 0\.05 .*1 row.* Give 0 to"):
        data_of(tmp_path, good, model=model)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: unknown fields"):
        data_of(tmp_path, '{"foo": 1}', model=model)


def test_a_run_says_that_a_preset_keeps_no_chat_template(tmp_path, monkeypatch):
    model = load_model(ModelRecipe(source="tiny_gemma"))
    talk = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]'
    monkeypatch.setattr("kerora.data.chat_templates._BUILT_IN", ())
    with pytest.warns(UserWarning, match="template 'plain': a KerasHub preset keeps no"):
        data_of(tmp_path, *[talk] * 4, model=model)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_of(tmp_path, *[talk] * 4, model=model)


def test_only_jax_multiplies_bfloat16_that_quickly():
    from kerora.models.cpu_bfloat16 import multiplies_bfloat16

    assert keras.backend.backend() == "jax" or not multiplies_bfloat16()
