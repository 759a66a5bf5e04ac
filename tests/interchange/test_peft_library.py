"""Hugging Face PEFT as the other side: what one writes, the other loads, and both compute alike."""

import os
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import families

from benchmarks.interchange import (
    BOUND,
    difference,
    export_difference,
    import_difference,
    load_in_peft,
    randomize_keras,
    randomize_peft,
)
from benchmarks.tiny_encoders import ENCODERS, IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_logits import keras_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import MODELS, SEQUENCE_TO_SEQUENCE, tiny_transformers
from kerora.adapters import (
    AdapterError,
    LoraConfig,
    adapter_configs,
    add_adapter,
    set_active_adapters,
)
from kerora.interchange import load_adapter, save_adapter
from kerora.models.loading import load_backbone, load_task

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

REAL = os.environ.get("KERORA_REAL_MODELS")
FAMILIES = families(
    [
        *(name for name in MODELS if not name.endswith(("_tied", "_scaled"))),
        *ENCODERS,
        *IMAGE_ENCODERS,
        *IMAGE_TEXT_ENCODERS,
        *SEEING,
        *SEQUENCE_TO_SEQUENCE,
    ]
)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_kerora_saved(family, tmp_path):
    found, changed = export_difference(family, tmp_path)
    assert changed > 0.5
    assert found < BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_kerora_loads_what_peft_saved(family, tmp_path):
    found, changed = import_difference(family, tmp_path)
    assert changed > 0.5
    assert found < BOUND


@pytest.mark.parametrize(
    "family",
    [*"gemma gemma3 llama31_tied qwen2_tied qwen2_moe_tied llama smollm3".split()],
)
def test_an_adapted_embedding_goes_both_ways(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    before = keras_logits(model)
    add_adapter(model, LoraConfig(rank=2, alpha=4, targets=["token_embedding", "query|q_proj"]))
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


@pytest.mark.parametrize("targets", ["query", ["query", "value"], "all-linear"])
def test_parts_of_a_fused_module_come_back_as_they_were(targets, tmp_path):
    tiny_transformers("gpt2", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=3, alpha=5, targets=targets))
    randomize_keras(model)
    save_adapter(model, tmp_path / "adapter")
    other = load_task(tmp_path / "base", preprocessor=None)
    load_adapter(other, tmp_path / "adapter")
    assert adapter_configs(other) == adapter_configs(model)
    for mine, again in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(again)
        )


def test_ranks_and_scales_that_differ_in_a_fused_module(tmp_path):
    base = tiny_transformers("gpt2", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["c_attn", "c_fc"],
        rank_pattern={"c_attn": 5},
        alpha_pattern={"h.1.attn.c_attn": 9},
        use_rslora=True,
        fan_in_fan_out=True,
        bias="lora_only",
    )
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND


def test_several_adapters_of_one_model(tmp_path):
    base = tiny_transformers("gpt2", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=2, targets=["query", "value"]), "first")
    add_adapter(model, LoraConfig(rank=3, alpha=5, targets=["key", "value"]), "second")
    randomize_keras(model)
    for name in ("first", "second"):
        save_adapter(model, tmp_path / name, name)
    tuned = peft.PeftModel.from_pretrained(base, tmp_path / "first", "first").eval()
    tuned.load_adapter(tmp_path / "second", "second")
    for names in (["first"], ["second"], ["first", "second"]):
        set_active_adapters(model, names)
        tuned.base_model.set_adapter(names)
        assert difference(model, tuned) < BOUND


@pytest.mark.parametrize(
    ("family", "targets", "module"),
    [
        ("mixtral", "sparse_feedforward_gate_dense", r"layers\.0\.block_sparse_moe\.gate"),
        ("gpt_oss", "router_dense", r"layers\.0\.mlp\.router"),
    ],
)
def test_a_router_is_refused_by_name(family, targets, module, tmp_path):
    tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=2, targets=targets))
    with pytest.raises(AdapterError, match=module):
        save_adapter(model, tmp_path / "adapter")


def test_a_tied_table_that_peft_cannot_tie_is_refused_by_name(tmp_path):
    tiny_transformers("gpt2", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=2, targets="token_embedding"))
    with pytest.raises(AdapterError, match=r"'transformer\.wte'"):
        save_adapter(model, tmp_path / "adapter")


@pytest.mark.parametrize("family", ["esm", "t5gemma", "t5gemma2", "vit"])
def test_a_table_that_peft_adapts_otherwise_is_refused_by_name(family, tmp_path):
    tiny_transformers(family, tmp_path / "base")
    backbone = load_backbone(tmp_path / "base")
    add_adapter(backbone, LoraConfig(rank=2, targets=".*(token|position)_embedding"))
    with pytest.raises(AdapterError, match=r"the table '.*embed.*'"):
        save_adapter(backbone, tmp_path / "adapter")


def test_experts_of_peft_are_refused_by_name(tmp_path):
    base = tiny_transformers("mixtral", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    config = peft.LoraConfig(target_parameters=["experts.down_proj"], target_modules=[])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"target_parameters.*down_proj"):
        load_adapter(model, tmp_path / "adapter")


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


@pytest.mark.parametrize("family", ["gemma3n", "qwen2_moe"])
def test_ranks_above_a_layers_own(family, tmp_path):
    # PEFT's "all-linear" takes in layers of four outputs (Gemma 3n) and of one (Qwen MoE).
    base = tiny_transformers(family, tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=6, target_modules="all-linear")).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    assert difference(model, tuned) < BOUND
    save_adapter(model, tmp_path / "again")
    base = tiny_transformers(family, tmp_path / "base")
    assert difference(model, load_in_peft(base, tmp_path / "again")) < BOUND


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
    assert out < 1e-3  # logits of up to 110

    randomize_peft(tuned, 0.02)
    tuned.save_pretrained(tmp_path / "again")
    load_adapter(model, tmp_path / "again", "again")
    set_active_adapters(model, ["again"])
    back = difference(model, tuned, ids)
    print(f"{name} [{keras.backend.backend()}]: out {out:.2e}, in {back:.2e}")
    assert back < 1e-3  # logits of up to 110
