"""That text becomes the ids that transformers makes of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from backends import once
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.tiny_transformers import tiny_transformers
from kerora.data.tokenization import TextTokenizer
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

pytestmark = once

REAL, DATA = os.environ.get("KERORA_REAL_MODELS"), os.environ.get("KERORA_REAL_DATA")
TEXTS = [
    "In 1819:\n\nfish  or rope?\n",
    "it's  2025,\t\ntwo\n\n\nlines",
    "DON'T 12 34567",
    "größer 東京",
]
SPLITS = {
    "smollm2": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


@pytest.mark.parametrize(
    ("family", "split"), [("llama", "smollm2"), ("llama", "gpt2"), ("qwen2", "gpt2")]
)
def test_ids_are_those_of_transformers(family, split, tmp_path):
    reference = _folder(family, split, tmp_path)
    model = load_task(tmp_path)
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [
        list(ids) for ids in TextTokenizer(model.preprocessor.tokenizer).texts(TEXTS)
    ] == expected
    by_layer = [np.asarray(model.preprocessor.tokenizer(text)).tolist() for text in TEXTS]
    assert by_layer == expected
    assert [model.preprocessor.tokenizer.detokenize(ids) for ids in by_layer] == TEXTS


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
    _folder("llama", "gpt2", tmp_path)
    tokenizer = load_task(tmp_path).preprocessor.tokenizer
    texts = pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(TEXTS)
    with pytest.raises(Exception, match=r"cannot run inside tf\.data"):  # a class made on the fly
        texts.map(tokenizer)


def test_a_damaged_tokenizer_is_named(tmp_path):
    _folder("llama", "gpt2", tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["pre_tokenizer"] = {"type": "Unheard"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ModelSourceError, match=r"tokenizer\.json"):
        load_task(tmp_path)


def _folder(family, split, folder):
    """A model's folder with a tokenizer of this split; the tokenizer as transformers has it."""
    tiny_transformers(family, folder, vocab_size=400)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[split])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20 + ["\n\n12 12 34 fish rope"] * 20, trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return fast
