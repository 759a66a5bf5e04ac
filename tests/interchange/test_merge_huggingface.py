"""Merged Hugging Face folders, against PEFT's `merge_and_unload` and `transformers`."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import PEFT_TARGETS
from benchmarks.tiny_encoders import IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_logits import torch_logits
from benchmarks.tiny_sam3 import DETECTORS
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import MODELS, SEQUENCE_TO_SEQUENCE, tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.interchange import merge_changes, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.loading import load_task

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="merging files does not depend on the backend"
)

from peft_models import adapted, load  # noqa: E402 - needs peft

REAL = os.environ.get("KERORA_REAL_MODELS")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "model.safetensors"
FAMILIES = [
    *sorted(MODELS),
    *IMAGE_ENCODERS,
    *IMAGE_TEXT_ENCODERS,
    *SEEING,
    *DETECTORS,
    *SEQUENCE_TO_SEQUENCE,
]


def random_model(config, folder, dtype=None, **options):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, **options)
    return model


def same_as_peft(model, base, merged, tolerance=1e-5):
    """Whether a folder holds what `merge_and_unload` gives, under the names of the base."""
    expected = model.merge_and_unload().state_dict()
    result = load(merged, dtype="auto").state_dict()
    assert set(expected) == set(result)
    changed = 0
    before = load(base, dtype="auto").state_dict()
    for name, tensor in result.items():
        assert tensor.dtype == expected[name].dtype
        scale = expected[name].float().abs().max().item() + 1e-9
        assert (tensor.float() - expected[name].float()).abs().max().item() / scale < tolerance
        changed += not torch.equal(tensor, before[name])
    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_merge_and_unload(family, tmp_path):
    base = tiny_transformers(family, tmp_path / "base")
    bias = "all" if family.startswith("qwen2") else "none"
    targets = PEFT_TARGETS.get(family, "all-linear")
    model = adapted(base, tmp_path / "a", r=3, lora_alpha=5, target_modules=targets, bias=bias)
    count = merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    logits = torch_logits(model)
    assert np.abs(torch_logits(load(tmp_path / "merged")) - logits).max() < 2e-3
    assert same_as_peft(model, tmp_path / "base", tmp_path / "merged", 1e-6) == count >= 8


NO_KERASHUB_EXPORT = {
    "gpt2": (
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32),
        ["c_attn", "c_proj", "c_fc"],
    ),
    "phi3": (
        transformers.Phi3Config(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=64, pad_token_id=0,
        ),
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "opt": (
        transformers.OPTConfig(
            hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
            max_position_embeddings=32, word_embed_proj_dim=32,
        ),
        ["q_proj", "fc1", "embed_positions"],
    ),
    "gpt_neox": (
        transformers.GPTNeoXConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            vocab_size=64,
        ),
        ["query_key_value", "embed_in", "dense"],
    ),
    "bloom": (
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
        ["query_key_value", "dense_h_to_4h"],
    ),
    "mamba": (
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8),
        ["in_proj", "x_proj"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", NO_KERASHUB_EXPORT)
def test_families_that_kerashub_cannot_export(family, tmp_path):
    config, targets = NO_KERASHUB_EXPORT[family]
    base = random_model(config, tmp_path / "base")
    model = adapted(base, tmp_path / "a", r=3, lora_alpha=5, target_modules=targets)
    count = merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    assert same_as_peft(model, tmp_path / "base", tmp_path / "merged") == count >= 4


def test_ranks_scales_biases_modules_and_an_untied_table(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_changes, "BLOCK", 500)  # three rows at a time
    base = tiny_transformers("qwen2", tmp_path / "base")
    model = adapted(
        base,
        tmp_path / "a",
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj", "embed_tokens", "lm_head"],
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        alpha_pattern={r"layers\.0\..*": 9},
        use_rslora=True,
        bias="lora_only",
        modules_to_save=["norm", "o_proj"],
    )
    merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    # q and v with their biases, o and two norms of two layers, the last norm, table and head.
    assert same_as_peft(model, tmp_path / "base", tmp_path / "merged", 1e-6) >= 13


def test_a_tied_table_is_merged_once(tmp_path):
    base = tiny_transformers("llama31_tied", tmp_path / "base")
    targets = ["embed_tokens", "q_proj"]
    model = adapted(base, tmp_path / "a", r=2, target_modules=targets, ensure_weight_tying=True)
    merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    # PEFT's own merge adds the delta to the shared tensor twice; its unmerged model is right.
    expected = torch_logits(model)
    assert np.abs(torch_logits(load(tmp_path / "merged")) - expected).max() < 2e-3


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_half_of_a_tied_pair_is_refused(target, tmp_path):
    base = tiny_transformers("llama31_tied", tmp_path / "base")
    adapted(base, tmp_path / "a", r=2, target_modules=[target, "q_proj"])
    with pytest.raises(AdapterError, match=f"{target}' alone"):
        merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype, tmp_path):
    config = transformers.LlamaConfig(**MODELS["llama"][1])
    base = random_model(config, tmp_path / "base", dtype)
    model = adapted(base, tmp_path / "a", 0.05, r=4, target_modules=PROJECTIONS)
    merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    # One value in the last place where the two sums in float32 fall on two sides of a middle.
    assert same_as_peft(model, tmp_path / "base", tmp_path / "merged", 2**-8) == 14


def test_shards_index_and_other_files_are_the_bases(tmp_path):
    config = transformers.LlamaConfig(**MODELS["llama"][1])
    base = random_model(config, tmp_path / "base", max_shard_size="20KB")
    model = adapted(base, tmp_path / "a", r=2, target_modules=["q_proj", "lm_head"])
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "base" / "extra").mkdir()
    (tmp_path / "base" / "extra" / "notes.txt").write_text("kept")
    merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    files = {f.relative_to(tmp_path / "base") for f in (tmp_path / "base").rglob("*")}
    merged = {f.relative_to(tmp_path / "merged") for f in (tmp_path / "merged").rglob("*")}
    assert files - merged == {Path("pytorch_model.bin")} and not merged - files
    index = "model.safetensors.index.json"
    assert (tmp_path / "merged" / index).read_bytes() == (tmp_path / "base" / index).read_bytes()
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 3
    assert same_as_peft(model, tmp_path / "base", tmp_path / "merged", 1e-6) == 3


def test_an_adapter_that_kerora_trained_knows_its_base(tmp_path):
    tiny_transformers("gemma", tmp_path / "base")
    model = load_task(tmp_path / "base", preprocessor=None)
    add_adapter(model, LoraConfig(rank=3, alpha=5, targets="all-linear"))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    save_adapter(model, tmp_path / "a")
    merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    with_peft = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "a").eval()
    expected = torch_logits(with_peft)
    assert np.abs(torch_logits(load(tmp_path / "merged")) - expected).max() < 2e-3

    tensors = load_file(tmp_path / "base" / WEIGHTS)
    other = {name: tensor * 1.05 for name, tensor in tensors.items()}
    save_file(other, tmp_path / "base" / WEIGHTS, {"format": "pt"})
    with pytest.raises(AdapterError, match="trained on another base"):
        merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "other")
    assert merge_folder(tmp_path / "base", tmp_path / "a", tmp_path / "other", force=True) == 14

    # Tensors of other shapes, and of other names.
    wider = transformers.LlamaConfig(**{**MODELS["llama"][1], "hidden_size": 128})
    small = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    for name, config in {"wider": wider, "gpt2": small}.items():
        random_model(config, tmp_path / name)
        with pytest.raises(AdapterError, match="trained on another base"):
            merge_folder(tmp_path / name, tmp_path / "a", tmp_path / "refused")


@pytest.mark.skipif(REAL is None, reason="KERORA_REAL_MODELS is not set")
def test_a_real_model(tmp_path):
    folder = Path(REAL) / "smollm2-135m-instruct"
    model = adapted(
        load(folder, "auto"), tmp_path / "a", 0.02, r=8, lora_alpha=16, target_modules=PROJECTIONS
    )
    merge_folder(folder, tmp_path / "a", tmp_path / "merged")
    assert same_as_peft(model, folder, tmp_path / "merged", 2**-8) == 210
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("Hello.").input_ids
