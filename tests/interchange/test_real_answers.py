"""Real models answer the same in kerora and in PEFT, token for token under greedy decoding."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

import kerora

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

REAL = os.environ.get("KERORA_REAL_MODELS")
NEW = 20
PROMPT = "Instruction:\nName a river in Egypt.\n\nResponse:\n"
ROWS = [
    {"prompt": PROMPT, "response": "The river is the Nile, and it flows north to the sea."},
    {"prompt": "Instruction:\nName a fruit.\n\nResponse:\n", "response": "The fruit is the fig."},
]

pytestmark = [
    pytest.mark.skipif(REAL is None, reason="KERORA_REAL_MODELS is not set"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="the file is the same on each"),
]


def torch_answer(model, ids):
    config = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        answer = model.generate(
            input_ids=torch.tensor(ids)[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            generation_config=config,
        )
    return answer[0, len(ids) :].tolist()


def keras_answer(model, ids):
    inputs = model.preprocessor.generate_preprocess([PROMPT], sequence_length=len(ids) + NEW)
    assert np.asarray(inputs["token_ids"])[0, : len(ids)].tolist() == ids
    answer = model.make_generate_function()(inputs, stop_token_ids=None)
    return np.asarray(answer["token_ids"])[0, len(ids) :].tolist()


def train_in_peft(model, rows):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(4):
        for ids in rows:
            ids = torch.tensor(ids)[None]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_trained_adapters_answer_the_same_on_both_sides(name, tmp_path):
    folder = Path(REAL) / name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = [tokenizer.bos_token_id]
    ids = start + tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    untrained = torch_answer(base, ids)
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    texts = [row["prompt"] + row["response"] for row in ROWS]
    train_in_peft(
        tuned, [start + tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    )
    tuned.save_pretrained(tmp_path / "peft")
    expected = torch_answer(tuned.eval(), ids)
    assert expected != untrained
    model = kerora.from_preset(folder, dtype="float32")
    model.compile(sampler="greedy")
    model.load_adapter(tmp_path / "peft")
    assert keras_answer(model, ids)[: len(expected)] == expected

    model.optimizer.learning_rate = 5e-3
    model.fit(ROWS * 8, sequence_length=64, batch_size=1, shuffle=False, verbose=0)
    answer = keras_answer(model, ids)
    assert answer[: len(expected)] != expected
    model.save_adapter(tmp_path / "kerora")
    other = peft.PeftModel.from_pretrained(tuned.unload(), tmp_path / "kerora").eval()
    back = torch_answer(other, ids)
    assert answer[: len(back)] == back
