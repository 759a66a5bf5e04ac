"""Real tokenizers and data: ids equal those that Hugging Face's software gives."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from backends import once

from kerora.data.encoding import Encoder
from kerora.data.pipeline import make_batches
from kerora.models.loading import chat_template

pytestmark = once

MODELS = os.environ.get("KERORA_REAL_MODELS")
DATA = os.environ.get("KERORA_REAL_DATA")

needs_models = pytest.mark.skipif(not MODELS, reason="KERORA_REAL_MODELS is not set")
needs_data = pytest.mark.skipif(
    not (MODELS and DATA), reason="KERORA_REAL_MODELS and KERORA_REAL_DATA are not both set"
)

TALK = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is the capital of France? Über…\n\n  And 12 + 34?"},
    {"role": "assistant", "content": "Paris.\n\n46"},
    {"role": "user", "content": "Thanks\n"},
    {"role": "assistant", "content": "You're welcome!"},
]


def folder(name: str) -> Path:
    return Path(str(MODELS)) / name


@pytest.fixture(scope="module")
def smollm2():
    import tokenizers
    from keras_hub.models import Llama3Tokenizer

    tokenizer = Llama3Tokenizer.from_preset(str(folder("smollm2-135m-instruct")))
    # KerasHub splits every byte-pair vocabulary as Llama 3 does; this one is split otherwise.
    own = tokenizers.Tokenizer.from_file(str(folder("smollm2-135m-instruct") / "tokenizer.json"))
    tokenizer._tokenizer.pre_tokenizer = own.pre_tokenizer
    return tokenizer


@pytest.fixture(scope="module")
def gemma3():
    from keras_hub.models import Gemma3Tokenizer

    return Gemma3Tokenizer.from_preset(str(folder("gemma-3-270m")))


def reference(name: str):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder(name))


@needs_models
def test_smollm2_conversations_equal_apply_chat_template(smollm2):
    name = "smollm2-135m-instruct"
    template = chat_template(folder(name))
    encoder = Encoder(smollm2, sequence_length=512, chat_template=template)
    theirs = reference(name)
    encoded = encoder.encode(TALK)
    assert encoded.token_ids.tolist() == theirs.apply_chat_template(TALK)["input_ids"]
    learned = theirs.decode(encoded.token_ids[encoded.loss_weights > 0])
    assert learned == "Paris.\n\n46<|im_end|>You're welcome!<|im_end|>"
    prompt = theirs.apply_chat_template(TALK[:4], add_generation_prompt=True)["input_ids"]
    assert encoder.encode_prompt(TALK[:4]).tolist() == prompt


@needs_models
def test_gemma3_conversations_equal_the_text_tokenised_at_once(gemma3):
    encoder = Encoder(gemma3, sequence_length=512)
    theirs = reference("gemma-3-270m")
    text = encoder.prompt_text(TALK[:4])
    assert text.startswith("<bos><start_of_turn>user\nYou are terse.\n\nWhat is")
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert encoder.encode_prompt(TALK[:4]).tolist() == expected
    encoded = encoder.encode(TALK)
    learned = theirs.decode(encoded.token_ids[encoded.loss_weights > 0])
    assert learned == "Paris.\n\n46<end_of_turn>You're welcome!<end_of_turn>"
    ids = encoded.token_ids.tolist()
    assert ids.count(gemma3.token_to_id("<start_of_turn>")) == 4
    assert ids.count(gemma3.start_token_id) == 1


@needs_models
def test_prompts_and_responses_start_and_end_as_they_should(gemma3, smollm2):
    row = {"instruction": "Name a colour.", "response": "Red, of course."}
    for name, tokenizer in (("gemma-3-270m", gemma3), ("smollm2-135m-instruct", smollm2)):
        theirs = reference(name)
        encoded = Encoder(tokenizer, sequence_length=128).encode(row)
        text = "Instruction:\nName a colour.\n\nResponse:\nRed, of course."
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        start, end = tokenizer.start_token_id, tokenizer.end_token_id
        assert encoded.token_ids.tolist() == [start, *expected, end]


@needs_models
def test_generation_in_keras_hub_starts_from_the_same_tokens(gemma3):
    from keras_hub.models import Gemma3CausalLMPreprocessor

    preprocessor = Gemma3CausalLMPreprocessor(gemma3, sequence_length=64)
    encoder = Encoder(gemma3, sequence_length=64)
    prompt = encoder.prompt_text({"instruction": "Name a colour."})
    inputs = preprocessor.generate_preprocess([prompt])
    count = int(np.asarray(inputs["padding_mask"]).sum())
    theirs = np.asarray(inputs["token_ids"]).reshape(-1)[:count]
    assert encoder.encode_prompt({"instruction": "Name a colour."}).tolist() == theirs.tolist()


@needs_data
def test_dolly_is_packed_almost_without_padding(gemma3):
    path = Path(str(DATA)) / "dolly" / "dolly_5k.jsonl"
    report = make_batches(path, gemma3, sequence_length=512, batch_size=4).report()
    assert report.fill > 0.95
    assert report.rows == sum(1 for _ in path.open("rb"))
    assert report.examples + sum(report.skipped.values()) == report.rows
    batches = make_batches(path, gemma3, sequence_length=8192, batch_size=1)
    steps = sum(1 for _ in batches)
    longest = batches.report()
    assert longest.complete
    assert longest.steps_per_epoch == steps
    assert longest.truncated == 0
    assert longest.examples == report.rows
    assert longest.tokens > report.tokens


@needs_data
def test_grade_school_questions_are_recognised(gemma3):
    path = Path(str(DATA)) / "gsm8k" / "test.jsonl"
    row = json.loads(path.open().readline())
    encoder = Encoder(gemma3, sequence_length=512)
    encoded = encoder.encode(row)
    learned = gemma3.detokenize(encoded.token_ids[encoded.loss_weights > 0][:-1])
    assert learned == row["answer"]
