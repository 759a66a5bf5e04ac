"""That llama.cpp gives, with a GGUF file and an adapter, what kerora gives with the same two."""

import os
from pathlib import Path

import gguf
import keras
import numpy as np
import pytest

import kerora
from benchmarks.interchange import GGUF_FAMILIES, GGUF_TARGETS
from benchmarks.tiny_gguf import tiny_gguf
from benchmarks.tiny_logits import keras_logits
from kerora.adapters import LoraConfig, add_adapter
from kerora.data.chat import ChatTemplate
from kerora.data.formats import Message
from kerora.interchange import save_gguf_adapter
from kerora.models.gguf_file import GGUFFile
from kerora.models.loading import load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytest.importorskip("xllamacpp", reason="xllamacpp, which is llama.cpp, is not installed")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="what the files hold is tested on each backend"
)

from llama_cpp_server import LlamaCpp  # noqa: E402 - needs xllamacpp

REAL = os.environ.get("KERORA_REAL_MODELS")
needs_real_models = pytest.mark.skipif(REAL is None, reason="KERORA_REAL_MODELS is not set")

VOCABULARY = {
    "ggml.model": "llama",
    "ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"],
    "ggml.token_type": [2, 3, 3, *[6] * 256, 1],
    "ggml.scores": [0.0] * 259 + [-1.0],
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 2,
    "ggml.unknown_token_id": 0,
}
RANDOM = [
    *("llama", "qwen2", "gemma3", "mixtral", "qwen2_moe", "qwen3_moe"),
    *("qwen3_5", "qwen3_5_moe", "gemma4", "gemma3n", "smollm3"),
]
# llama.cpp has one number for each of these, whatever a file says, and reads as many rows for the
# layers' own inputs as for the model's. Of a narrow layer of Gemma 3n one unit in twenty is too few
# for both sides to round alike.
FIXED = {
    "gemma4": {"vocab_size_per_layer_input": 260},
    "gemma3n": {
        "vocab_size_per_layer_input": 260,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "num_kv_shared_layers": 0,
        "intermediate_size": [512] * 5,
        "activation_sparsity_pattern": [0.95] * 5,
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "laurel_rank": 64,
        "hidden_size_per_layer_input": 256,
    },
}
# Of two tokens whose logits, of a spread of about 1.7, differ by less, rounding takes either: these
# models' answers come upon such.
TIES = {"gemma3n": 0.01, "qwen3_5_moe": 0.01, "smollm3": 0.01}
PROMPT = "Instruction:\nName a river in Egypt.\n\nResponse:\n"
ROWS = [
    {"prompt": PROMPT, "response": "The river is the Nile, and it flows north to the sea."},
    {"prompt": "Instruction:\nName a fruit.\n\nResponse:\n", "response": "The fruit is the fig."},
]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello, you <b>there</b>"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why is the sky blue?"},
]


@pytest.mark.parametrize("name", RANDOM)
def test_random_models_answer_alike(name, tmp_path):
    base, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    fields = {"vocab_size": 260, **GGUF_FAMILIES.get(name, {}), **FIXED.get(name, {})}
    tiny_gguf(name, base, vocabulary=VOCABULARY, **fields)
    model = load_task(base, preprocessor=None)
    add_adapter(model, LoraConfig(rank=4, alpha=6, targets=GGUF_TARGETS.get(name, "all-linear")))
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    save_gguf_adapter(model, adapter)
    prompt = [1, 75, 104, 111, 40]
    answer = LlamaCpp(base, adapter, context=64).greedy(prompt, 20)
    assert len(answer) > 5
    logits = keras_logits(model, np.array([prompt + answer]))[0, len(prompt) - 1 : -1]
    behind = logits.max(-1) - logits[np.arange(len(answer)), answer]
    assert behind.max() <= TIES.get(name, 0.0)
    assert answer != LlamaCpp(base, context=64).greedy(prompt, 20)


def test_a_rotary_factor_without_a_type_is_linear_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_scaling_type", lambda *_: None)
    base = tmp_path / "model.gguf"
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    tiny_gguf("llama", base, vocabulary=VOCABULARY, vocab_size=260, rope_parameters=rope)
    assert "llama.rope.scaling.type" not in GGUFFile(base).fields
    prompt = [1, 75, 104, 111, 40]
    answer = LlamaCpp(base, context=64).greedy(prompt, 20)
    logits = keras_logits(load_task(base, preprocessor=None), np.array([prompt + answer]))
    assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer


@needs_real_models
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_a_trained_adapter_answers_alike_on_a_quantised_file(name, tmp_path):
    base, adapter = Path(REAL) / f"{name}.gguf", tmp_path / "adapter.gguf"
    model = kerora.from_preset(base)
    model.backbone.enable_lora(4)
    model.compile(keras.optimizers.Adam(5e-3), sampler="greedy")
    model.fit(ROWS * 8, batch_size=1, sequence_length=64, packing=False, verbose=0)
    save_gguf_adapter(model, adapter)
    server = LlamaCpp(base, adapter)
    tokenizer = model.preprocessor.tokenizer
    prompt = np.asarray(tokenizer(PROMPT)).tolist()
    assert server.tokenize(PROMPT) == prompt
    prompt = [tokenizer.start_token_id, *prompt]
    answer = server.greedy(prompt, 20)
    ids = np.array([prompt + [0] * 20])
    mask = np.array([[1] * len(prompt) + [0] * 20])
    inputs = {"token_ids": ids, "padding_mask": mask}
    ours = model.make_generate_function()(inputs, stop_token_ids=None)["token_ids"]
    assert np.asarray(ours)[0, len(prompt) :].tolist()[: len(answer)] == answer
    assert "Nile" in tokenizer.detokenize(answer)
    assert answer != LlamaCpp(base).greedy(prompt, 20)


@needs_real_models
def test_a_conversation_is_laid_out_alike():
    base = Path(REAL) / "smollm2-135m-instruct.gguf"
    source = kerora.from_preset(base, load_weights=False).chat_template
    messages = [Message(turn["role"], turn["content"]) for turn in CONVERSATION]
    ours = ChatTemplate(source).render(messages, add_generation_prompt=True)
    assert LlamaCpp(base).apply_template(CONVERSATION) == ours
