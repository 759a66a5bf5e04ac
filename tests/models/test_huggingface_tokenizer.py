"""That text becomes the ids that transformers makes of it."""

import json
import os
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from backends import once
from tiny_byte_pair import TEXTS, byte_pair_folder

from benchmarks.tiny_logits import keras_logits
from kerora import from_preset
from kerora.data.tokenization import TextTokenizer
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

pytestmark = once

REAL, DATA = os.environ.get("KERORA_REAL_MODELS"), os.environ.get("KERORA_REAL_DATA")


@pytest.mark.parametrize(
    ("family", "split"), [("llama", "smollm2"), ("llama", "gpt2"), ("qwen2", "gpt2")]
)
def test_ids_are_those_of_transformers(family, split, tmp_path):
    reference = byte_pair_folder(family, split, tmp_path)
    model = load_task(tmp_path)
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [
        list(ids) for ids in TextTokenizer(model.preprocessor.tokenizer).texts(TEXTS)
    ] == expected
    by_layer = _ids(model)
    assert by_layer == expected
    assert [model.preprocessor.tokenizer.detokenize(ids) for ids in by_layer] == TEXTS


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_preset_gives_the_same_tokens_and_logits(family, tmp_path):
    byte_pair_folder(family, "smollm2", tmp_path / "hf", tie_word_embeddings=True)
    model = from_preset(tmp_path / "hf")
    with pytest.warns(UserWarning, match="splits text into words"):
        model.save_to_preset(tmp_path / "keras")
    again = from_preset(tmp_path / "keras")
    assert _ids(again) == _ids(model)
    by_keras_hub = keras_hub.models.CausalLM.from_preset(str(tmp_path / "keras"))
    for saved in (again, by_keras_hub):
        tokenizer, expected = saved.preprocessor.tokenizer, model.preprocessor.tokenizer
        for name in ("start_token_id", "end_token_id", "pad_token_id"):
            assert getattr(tokenizer, name) == getattr(expected, name)
        np.testing.assert_array_equal(keras_logits(saved), keras_logits(model))
    marks = "<s> fish <|im_end|></s>"
    assert _ids(by_keras_hub, [marks]) == _ids(model, [marks])


def test_a_preset_is_saved_again(tmp_path):
    byte_pair_folder("llama", "smollm2", tmp_path / "hf")
    model = from_preset(tmp_path / "hf")
    for name in ("first", "second"):
        with pytest.warns(UserWarning, match="splits text into words"):
            model.save_to_preset(tmp_path / name)
        model = from_preset(tmp_path / name)
    assert _ids(model) == _ids(from_preset(tmp_path / "hf"))


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
@pytest.mark.skipif(None in (REAL, DATA), reason="KERORA_REAL_MODELS or _DATA is not set")
def test_real_texts_become_the_ids_of_transformers(name):
    folder = Path(REAL) / name
    lines = (Path(DATA) / "dolly" / "dolly_5k.jsonl").read_text(encoding="utf-8").splitlines()
    texts = ["\n\n".join(map(str, json.loads(line).values())) for line in lines[:300]]
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ids = TextTokenizer(load_task(folder).preprocessor.tokenizer).texts(texts)
    expected = reference(texts, add_special_tokens=False)["input_ids"]
    assert [list(row) for row in ids] == expected


def test_other_ids_inside_a_tensorflow_pipeline_are_refused(tmp_path):
    byte_pair_folder("llama", "gpt2", tmp_path)
    tokenizer = load_task(tmp_path).preprocessor.tokenizer
    texts = pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(TEXTS)
    with pytest.raises(Exception, match=r"cannot run inside tf\.data"):  # a class made on the fly
        texts.map(tokenizer)


def test_a_damaged_tokenizer_is_named(tmp_path):
    byte_pair_folder("llama", "gpt2", tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["pre_tokenizer"] = {"type": "Unheard"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ModelSourceError, match=r"tokenizer\.json"):
        load_task(tmp_path)


def _ids(model, texts=TEXTS):
    return [np.asarray(model.preprocessor.tokenizer(text)).tolist() for text in texts]
