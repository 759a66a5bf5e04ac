"""Merged Hugging Face folders, against PEFT's `merge_and_unload` and `transformers`."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import PEFT_TARGETS
from benchmarks.tiny_encoders import IMAGE_ENCODERS
from benchmarks.tiny_transformers import (
    MODELS,
    SEQUENCE_TO_SEQUENCE,
    tiny_transformers,
    torch_logits,
)
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.interchange import merge_changes, save_adapter
from kerora.interchange.merge import merge_folder
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_task

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="merging files does not depend on the backend"
)

REAL = os.environ.get("KERORA_REAL_MODELS")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "model.safetensors"


def load(folder, dtype="float32"):
    config = json.loads((Path(folder) / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    return kind.from_pretrained(folder, dtype=dtype).eval()


def adapted(base, folder, spread=0.2, **fields):
    """A PEFT model with a random adapter, saved to `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PEFT has no type of task for images.
        task_type = None if base.main_input_name == "pixel_values" else "CAUSAL_LM"
        model = peft.get_peft_model(base, peft.LoraConfig(task_type=task_type, **fields)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name or weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * spread)
        model.save_pretrained(folder)
    return model


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


@pytest.mark.parametrize("family", [*sorted(MODELS), *IMAGE_ENCODERS, *SEQUENCE_TO_SEQUENCE])
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_transformers("llama", folder / "base")
    adapted(base, folder / "adapter", r=2, target_modules=["q_proj"])
    return folder


@pytest.fixture
def broken(pair, tmp_path):
    return shutil.copytree(pair, tmp_path / "pair")


def refused(folder, error, match):
    with pytest.raises(error, match=match):
        merge_folder(folder / "base", folder / "adapter", folder / "merged")
    assert {entry.name for entry in folder.iterdir()} <= {"base", "adapter", "elsewhere"}


def change(file, **tensors):
    held = load_file(file)
    for name, tensor in tensors.items():
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    save_file(held, file, {"format": "pt"})


QUERY = "model.layers.0.self_attn.q_proj"


def test_a_tensor_without_a_place_is_named(broken):
    file = broken / "base" / WEIGHTS
    tensor = load_file(file)[f"{QUERY}.weight"]
    change(file, **{f"{QUERY}.weight": None})
    refused(broken, AdapterError, f"changes '{QUERY}.weight', and the base has no such tensor")
    change(file, **{f"{QUERY}.weight": tensor[:5]})
    refused(broken, AdapterError, r"must fit a tensor of shape \(5, 32\)")
    change(file, **{f"{QUERY}.weight": tensor.astype("int8")})
    refused(broken, AdapterError, "stores .* as I8")
    change(file, **{f"{QUERY}.weight": np.full_like(tensor, 65000).astype("float16")})
    adapter = broken / "adapter" / "adapter_model.safetensors"
    factors = load_file(adapter)
    change(adapter, **{name: np.full_like(value, 1e3) for name, value in factors.items()})
    refused(broken, AdapterError, "NaN or infinity in F16")


def test_a_bias_without_a_place_is_named(broken):
    file = broken / "adapter" / "adapter_model.safetensors"
    change(file, **{f"base_model.model.{QUERY}.base_layer.bias": np.zeros(32, "float32")})
    refused(broken, AdapterError, f"{QUERY}.bias")


@pytest.mark.parametrize("name", ["../elsewhere/x.safetensors", "/etc/x.safetensors", "..", 3])
def test_an_index_that_leads_elsewhere(name, broken):
    base = broken / "base"
    (broken / "elsewhere").mkdir()
    (base / WEIGHTS).rename(broken / "elsewhere" / "x.safetensors")
    index = {"weight_map": {f"{QUERY}.weight": name}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(broken, ModelSourceError, "must name safetensors files beside it")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_link_that_leads_elsewhere(name, broken):
    (broken / "elsewhere").mkdir()
    outside = broken / "elsewhere" / name
    if (broken / "base" / name).exists():
        (broken / "base" / name).rename(outside)
    else:
        outside.write_text("secret")
    (broken / "base" / name).symlink_to(outside)
    refused(broken, ModelSourceError, "leads out of its folder")


def test_a_folder_of_the_hugging_face_cache(broken):
    cache = broken / "elsewhere" / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    shutil.copytree(broken / "base", cache / "snapshots" / "1")
    (cache / "snapshots" / "1" / WEIGHTS).rename(cache / "blobs" / "abc")
    (cache / "snapshots" / "1" / WEIGHTS).symlink_to("../../blobs/abc")
    merge_folder(cache / "snapshots" / "1", broken / "adapter", broken / "merged")
    assert not (broken / "merged" / WEIGHTS).is_symlink()


def test_an_output_that_holds_something(broken):
    with pytest.raises(FileExistsError, match="outside its base"):
        merge_folder(broken / "base", broken / "adapter", broken / "base")
    with pytest.raises(FileExistsError, match="outside its base"):
        merge_folder(broken / "base", broken / "adapter", broken / "base" / "merged")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        merge_folder(broken / "base", broken / "adapter", broken / "adapter")
    (broken / "merged").mkdir()
    assert merge_folder(broken / "base", broken / "adapter", broken / "merged") == 2


def test_files_that_are_damaged(broken):
    file = broken / "base" / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    refused(broken, ModelSourceError, "is damaged")
    file.unlink()
    (broken / "base" / "pytorch_model.bin").write_bytes(b"x")
    refused(broken, ModelSourceError, "Pickled weights")
    (broken / "base" / "config.json").write_text("{")
    refused(broken, ModelSourceError, "config.json is not valid")


def test_the_command(broken):
    arguments = ["merge", "base", "--adapter", "adapter", "--out", "merged"]
    done = subprocess.run(
        [sys.executable, "-m", "kerora.cli", *arguments],
        cwd=broken,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 tensors changed; 0.00 GB in merged\n"
    assert load(broken / "merged") is not None


MEASURE = """
import re, sys
from pathlib import Path
from kerora.interchange.merge import merge_folder
def megabytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+)", status)[1]) / 1024
merge_folder(*sys.argv[1:4])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = megabytes("VmRSS")
merge_folder(*sys.argv[4:7])
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read where Linux keeps it")
def test_memory_is_bounded_by_the_largest_tensor(pair, tmp_path):
    # Six tensors of 64 MB in one file, all adapted; a merge of a tiny folder is the baseline.
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    shutil.copytree(pair / "adapter", adapter)
    (base / "config.json").write_text('{"model_type": "llama"}')
    row, factors = np.zeros((4096, 4096), "float32"), {}
    names = [f"model.layers.{k}.mlp.up_proj" for k in range(6)]
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = np.ones((2, 4096), "float32")
        factors[f"base_model.model.{name}.lora_B.weight"] = np.ones((4096, 2), "float32")
    save_file(factors, adapter / "adapter_model.safetensors")
    save_file(dict.fromkeys((f"{name}.weight" for name in names), row), base / WEIGHTS)
    assert (base / WEIGHTS).stat().st_size > 4e8
    tiny = (pair / "base", pair / "adapter", tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, (*tiny, base, adapter, tmp_path / "merged"))],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    megabytes = float(done.stdout.split()[-1])
    print(f"{megabytes:.0f} MB above the baseline")
    assert megabytes < 2 * 64
    merged = load_file(tmp_path / "merged" / WEIGHTS)
    assert all((tensor == 8).all() for tensor in merged.values())


KILL = """
import os, signal, sys
from kerora.interchange.merge import merge_folder
def progress(name, done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
merge_folder(*sys.argv[1:4], progress=progress)
"""


def test_a_kill_in_the_middle_leaves_no_half_folder(broken):
    paths = [str(broken / name) for name in ("base", "adapter", "merged")]
    done = subprocess.run([sys.executable, "-c", KILL, *paths], capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert not (broken / "merged").exists()
    assert merge_folder(*paths) == 2


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
