"""Merging Hugging Face folders: what is refused, and what is left behind where it stops."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError
from kerora.interchange.merge import merge_folder
from kerora.models.errors import ModelSourceError

pytest.importorskip("peft")
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="merging files does not depend on the backend"
)

from peft_models import adapted, load  # noqa: E402 - needs peft

WEIGHTS = "model.safetensors"


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
