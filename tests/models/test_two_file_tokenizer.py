"""A GPT-2's folder with vocab.json and merges.txt, as before there was a tokenizer.json."""

import json

import numpy as np
import pytest
from backends import once
from tiny_byte_pair import TEXTS, byte_pair_folder
from tokenizers import Tokenizer

from kerora.data.tokenization import TextTokenizer
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

pytestmark = once

MARKED = "fish<|endoftext|>a<|user|> rope"


def test_ids_are_those_of_transformers(tmp_path):
    folder_of_two_files(tmp_path)
    reference = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    model = load_task(tmp_path)
    expected = [reference(text)["input_ids"] for text in [*TEXTS, MARKED]]
    tokenizer = TextTokenizer(model.preprocessor.tokenizer)
    assert [list(ids) for ids in tokenizer.texts([*TEXTS, MARKED])] == expected
    by_layer = np.asarray(model.preprocessor.tokenizer(MARKED)).tolist()
    assert by_layer == expected[-1]
    assert model.preprocessor.tokenizer.detokenize(by_layer) == MARKED


def test_added_tokens_that_leave_a_gap(tmp_path):
    folder_of_two_files(tmp_path, gap=2)
    with pytest.raises(ModelSourceError, match=r"'<\|user\|>' the number \d+, .* vocab.json it is"):
        load_task(tmp_path)


def folder_of_two_files(folder, gap=0):
    reference = byte_pair_folder("gpt2", "gpt2", folder)
    Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    added = {"<|user|>": len(reference) + gap}
    (folder / "added_tokens.json").write_text(json.dumps(added))
