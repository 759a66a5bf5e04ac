"""That marks which a folder adds to its base's SentencePiece model are single tokens."""

import json

import numpy as np
import pytest
from backends import once
from tiny_sentencepiece import GEMMA, trained_sentencepiece

from benchmarks.tiny_transformers import tiny_transformers
from kerora import from_preset
from kerora.data.tokenization import TextTokenizer
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

pytestmark = once

PLAIN = ["the cat sat", "a dog names\n\n7 users on the log", "cats  and dogs "]
CHAT = "<|im_start|>user\nname a cat<|im_end|><|im_start|>the dog\nsat<|im_end|>"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mistral", {}),
        ("mixtral", {}),
        ("gemma", GEMMA),
        ("gemma2", GEMMA),
        ("gemma3", GEMMA),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json"])
def test_ids_are_those_of_transformers(family, options, file, tmp_path):
    reference = _folder(family, options, tmp_path)
    if file == "added_tokens.json":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / file).write_text(json.dumps(reference.get_added_vocab()))
    model = load_task(tmp_path)
    tokenizer = TextTokenizer(model.preprocessor.tokenizer)
    expected = reference([*PLAIN, CHAT], add_special_tokens=False)["input_ids"]
    assert [list(ids) for ids in tokenizer.texts(PLAIN)] == expected[:-1]
    assert tokenizer.marked_texts([(CHAT, True)]) == expected[-1:]
    assert tokenizer.mark_id("<|im_end|>") == reference.convert_tokens_to_ids("<|im_end|>")


def test_a_preset_keeps_them(tmp_path):
    reference = _folder("gemma", GEMMA, tmp_path / "hf")
    model = from_preset(tmp_path / "hf")
    model.save_to_preset(tmp_path / "keras")
    again = from_preset(tmp_path / "keras")
    ids = np.asarray(again.preprocessor.tokenizer(CHAT)).tolist()
    assert ids == reference(CHAT, add_special_tokens=False)["input_ids"]


def test_tokens_without_a_row_are_left_out(tmp_path):
    _folder("gemma", GEMMA, tmp_path)
    change_added(tmp_path, {"<image_soft_token>": 500, "<gap>": 420})
    tokenizer = TextTokenizer(load_task(tmp_path).preprocessor.tokenizer)
    assert tokenizer.mark_id("<image_soft_token>") is None
    assert tokenizer.mark_id("<gap>") == 420
    assert len(tokenizer.texts(["<no token 410>"])[0]) > 1


def test_a_token_in_place_of_an_unused_one(tmp_path):
    _folder("gemma", {**GEMMA, "marks": ["<unused0>"]}, tmp_path)
    change_added(tmp_path, {"<|fim|>": 4})
    tokenizer = TextTokenizer(load_task(tmp_path).preprocessor.tokenizer)
    assert [tokenizer.mark_id(mark) for mark in ("<|fim|>", "<unused0>")] == [4, None]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<|other|>": 300}, r"'<\|other\|>' the number 300, .* has '.*' there"),
        ({"<eos>": 405}, "'<eos>' the number 405, .* has the number 1"),
        ({"<x>": "402"}, "needs a number from 0"),
        ({"": 402}, "cannot be added"),
    ],
)
def test_files_of_different_models_are_refused(added, message, tmp_path):
    _folder("gemma", GEMMA, tmp_path)
    change_added(tmp_path, added)
    with pytest.raises(ModelSourceError, match=message):
        load_task(tmp_path)


def change_added(folder, added):
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps(added))


def _folder(family, options, folder):
    """A model's folder with ChatML's marks; the tokenizer as transformers has it."""
    tiny_transformers(family, folder, vocab_size=432)
    proto = trained_sentencepiece(**options).serialized_model_proto()
    (folder / "tokenizer.model").write_bytes(proto)
    kind = transformers.GemmaTokenizer if "gemma" in family else transformers.LlamaTokenizer
    reference = kind.from_pretrained(folder)
    reference.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    reference.save_pretrained(folder)
    assert (folder / "tokenizer.model").read_bytes() == proto
    return reference
