"""Tokenizers of folders that KerasHub's converters cannot read."""

import json
import re

import keras_hub
import numpy as np
import pytest
from backends import once
from tiny_byte_pair import TEXTS, byte_pair_folder
from tiny_sentencepiece import GEMMA, trained_sentencepiece

from benchmarks.tiny_transformers import tiny_transformers
from kerora import from_preset
from kerora.data.tokenization import TextTokenizer
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

pytestmark = once

BEGIN, END = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
DEEPSEEK = {"marks": ("<pad>", BEGIN, END), "special": {"bos_token": BEGIN, "eos_token": END}}
PIECES = ["the cat sat on the mat and the dog sat on the log", "a user names a cat, 7 dogs"]


def as_object(text):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True}


@pytest.mark.parametrize("form", [lambda text: text, as_object], ids=["text", "object"])
def test_special_tokens_in_either_form(form, tmp_path):
    reference = byte_pair_folder("llama", "gpt2", tmp_path)
    change_config(tmp_path, bos_token=form("<s>"), eos_token=form("</s>"))
    tokenizer = load_task(tmp_path).preprocessor.tokenizer
    assert (tokenizer.start_token, tokenizer.end_token) == ("<s>", "</s>")
    assert tokenizer.start_token_id == reference.convert_tokens_to_ids("<s>")
    assert tokenizer.end_token_id == reference.convert_tokens_to_ids("</s>")


@pytest.mark.filterwarnings("ignore:A KerasHub preset")
def test_no_start_token_is_put_in_front_where_there_is_none(tmp_path):
    byte_pair_folder("llama", "gpt2", tmp_path / "hf")
    change_config(tmp_path / "hf", bos_token=None)
    model = from_preset(tmp_path / "hf")
    model.save_to_preset(tmp_path / "keras")
    for each in (model, from_preset(tmp_path / "keras")):
        expected = np.asarray(each.preprocessor.tokenizer("fish")).tolist()
        inputs, _, _ = each.preprocessor(["fish"], sequence_length=8)
        assert np.asarray(inputs["token_ids"])[0].tolist()[: len(expected)] == expected
    assert model.preprocessor.tokenizer.start_token is None
    inputs = model.preprocessor.generate_preprocess(["fish"], sequence_length=8)
    assert np.asarray(inputs["token_ids"])[0].tolist()[: len(expected)] == expected
    assert model.preprocessor.generate_postprocess(inputs) == ["fish"]


def test_no_end_token_is_named(tmp_path):
    byte_pair_folder("llama", "gpt2", tmp_path)
    change_config(tmp_path, eos_token=None)
    with pytest.raises(ModelSourceError, match=r"names no end token \(`eos_token`\)"):
        load_task(tmp_path)
    change_config(tmp_path, eos_token=[1])
    with pytest.raises(ModelSourceError, match=r"`eos_token` must be a text. Received: \[1\]"):
        load_task(tmp_path)


@pytest.mark.filterwarnings("ignore:A KerasHub preset")
@pytest.mark.parametrize("family", ["qwen2", "qwen2_moe"])
def test_an_end_token_of_another_name(family, tmp_path):
    reference = byte_pair_folder(family, "gpt2", tmp_path / "hf", **DEEPSEEK)
    model = from_preset(tmp_path / "hf")
    model.save_to_preset(tmp_path / "keras")
    again = from_preset(tmp_path / "keras")
    by_keras_hub = keras_hub.models.CausalLM.from_preset(str(tmp_path / "keras"))
    for each in (model, again, by_keras_hub):
        assert each.preprocessor.tokenizer.end_token_id == reference.eos_token_id
    for each in (model, again):
        assert each.preprocessor.tokenizer.end_token == END
        chat = f"{BEGIN}fish{END}"
        ids = TextTokenizer(each.preprocessor.tokenizer).marked_texts([(chat, True)])
        assert ids == [reference(chat, add_special_tokens=False)["input_ids"]]
        tokenizer = each.preprocessor.tokenizer
        assert (tokenizer.start_token, tokenizer.start_token_id) == (BEGIN, reference.bos_token_id)
        inputs = each.preprocessor.generate_preprocess(["fish"], sequence_length=8)
        assert np.asarray(inputs["token_ids"])[0, 0] == reference.bos_token_id
    byte_pair_folder(family, "gpt2", tmp_path / "none")
    change_config(tmp_path / "none", bos_token=None)
    from_preset(tmp_path / "none").save_to_preset(tmp_path / "keras")
    assert from_preset(tmp_path / "keras").preprocessor.tokenizer.start_token is None


def test_a_gpt2_with_tokenizer_json_alone(tmp_path):
    reference = byte_pair_folder("gpt2", "gpt2", tmp_path)
    tokenizer = TextTokenizer(load_task(tmp_path).preprocessor.tokenizer)
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [list(ids) for ids in tokenizer.texts(TEXTS)] == expected


@pytest.mark.parametrize(
    ("family", "options", "legacy"),
    [
        ("gemma", GEMMA, None),
        ("gemma2", GEMMA, None),
        ("mixtral", {}, False),
        ("mistral", {}, True),
        ("mistral", {}, False),
    ],
)
def test_pieces_and_merges_alone(family, options, legacy, tmp_path):
    tiny_transformers(family, tmp_path, vocab_size=432)
    path = tmp_path / "tokenizer.model"
    model = trained_sentencepiece(**options)
    path.write_bytes(model.serialized_model_proto())
    kind = transformers.GemmaTokenizer if legacy is None else transformers.LlamaTokenizer
    kind.from_pretrained(tmp_path).save_pretrained(tmp_path)
    if legacy:
        fields = json.loads((tmp_path / "tokenizer.json").read_text())
        replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        steps = [{"type": "Prepend", "prepend": "\u2581"}, replaced]
        fields |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
        (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    path.unlink()
    tokenizer = load_task(tmp_path).preprocessor.tokenizer
    texts = [*PIECES, " cats  and\n\ndogs 77", "größer"]
    ids = [np.asarray(tokenizer(text)).tolist() for text in texts]
    assert ids == [model.encode(text) for text in texts]
    assert [tokenizer.detokenize(row) for row in ids] == texts
    assert (tokenizer.start_token_id, tokenizer.end_token_id) == (model.bos_id(), model.eos_id())


def test_a_file_that_is_missing_is_named(tmp_path):
    byte_pair_folder("gpt2", "gpt2", tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")
    with pytest.raises(ModelSourceError, match=re.escape("merges.txt")):
        load_task(tmp_path)


def change_config(folder, **fields):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
