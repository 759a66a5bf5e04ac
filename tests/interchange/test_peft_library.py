"""Hugging Face PEFT as the other side: what one writes, the other loads, and both compute alike."""

import os
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_transformers import IDS, keras_logits, tiny_transformers, torch_logits

from kerora.adapters import LoraConfig, add_adapter, set_active_adapters
from kerora.interchange import load_adapter, save_adapter
from kerora.models.loading import load_task

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAMILIES = ["gemma", "gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REAL = os.environ.get("KERORA_REAL_MODELS")
BOUND = 1e-3


def randomize_keras(model, spread=0.2):
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, spread, variable.shape))


def randomize_peft(model, spread=0.2):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or (weight.requires_grad and name.endswith("bias")):
                weight.copy_(torch.randn_like(weight) * spread)


def load_in_peft(base, folder):
    with warnings.catch_warnings():
        # PEFT warns of missing keys, unknown fields and targets that do not match.
        warnings.simplefilter("error")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        return peft.PeftModel.from_pretrained(base, folder).eval()


def difference(keras_model, torch_model, ids=IDS):
    return np.abs(keras_logits(keras_model, ids) - torch_logits(torch_model, ids)).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_kerora_saved(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    before = keras_logits(model)
    bias = "lora_only" if family == "qwen2" else "none"
    add_adapter(model, LoraConfig(rank=3, alpha=5, targets="all-linear", bias=bias))
    randomize_keras(model)
    save_adapter(model, tmp_path / "adapter")
    assert np.abs(keras_logits(model) - before).max() > 1
    assert difference(model, load_in_peft(base, tmp_path / "adapter")) < BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_kerora_loads_what_peft_saved(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
        bias="all" if family == "qwen2" else "none",
    )
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND


@pytest.mark.parametrize("family", ["gemma", "gemma3", "llama31_tied", "qwen2_tied", "llama"])
def test_an_adapted_embedding_goes_both_ways(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    before = keras_logits(model)
    add_adapter(model, LoraConfig(rank=2, alpha=4, targets=["token_embedding", "query"]))
    randomize_keras(model)
    save_adapter(model, tmp_path / "adapter")
    tuned = load_in_peft(base, tmp_path / "adapter")
    assert np.abs(keras_logits(model) - before).max() > 1
    assert difference(model, tuned) < BOUND

    randomize_peft(tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(tmp_path / "again")
    other = load_task(tmp_path / "base", preprocessor=None)
    load_adapter(other, tmp_path / "again")
    assert difference(other, tuned) < BOUND
    assert difference(model, tuned) > 1


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scales_that_differ_between_layers(use_rslora, tmp_path):
    base = tiny_transformers("llama", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        alpha_pattern={r"layers\.0\..*": 9},
        use_rslora=use_rslora,
    )
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND


def test_half_precision_adapters_are_read(tmp_path):
    base = tiny_transformers("llama", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    randomize_peft(tuned)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(weight.bfloat16())
    half = {
        name: weight.bfloat16() if "lora_" in name else weight
        for name, weight in tuned.state_dict().items()
    }
    tuned.save_pretrained(tmp_path / "adapter", state_dict=half)
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND


@pytest.mark.skipif(REAL is None, reason="KERORA_REAL_MODELS is not set")
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_models_both_ways(name, tmp_path):
    folder = Path(REAL) / name
    ids = np.array([[2, 9259, 563, 506, 3004, 529, 7001, 2361, 45, 1200, 333, 18]])
    model = load_task(folder, dtype="float32", preprocessor=None)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = keras_logits(model, ids)
    add_adapter(model, LoraConfig(rank=4, alpha=8, targets="all-linear"))
    randomize_keras(model, 0.02)
    save_adapter(model, tmp_path / "adapter")
    tuned = load_in_peft(base, tmp_path / "adapter")
    out = difference(model, tuned, ids)
    assert np.abs(keras_logits(model, ids) - before).max() > 1
    assert out < BOUND

    randomize_peft(tuned, 0.02)
    tuned.save_pretrained(tmp_path / "again")
    load_adapter(model, tmp_path / "again", "again")
    set_active_adapters(model, ["again"])
    back = difference(model, tuned, ids)
    print(f"{name} [{keras.backend.backend()}]: out {out:.2e}, in {back:.2e}")
    assert back < BOUND
