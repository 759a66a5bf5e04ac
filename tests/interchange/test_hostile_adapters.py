"""That an adapter folder from a stranger loads or is refused, and the model stays as it was.

`KERORA_FUZZ_SEEDS=1000 pytest` tries more mutations than the few that every run does.
"""

import json
import os
import struct
import time

import keras
import numpy as np
import pytest
from hostile_json import mutated, outcomes
from tiny_backbones import tiny_backbone

from kerora.adapters import AdapterError, LoraConfig, add_adapter, remove_adapter
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.contents import inspect_adapter

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="reading a file does not depend on the backend"
)
SEEDS = range(int(os.environ.get("KERORA_FUZZ_SEEDS", "60")))


@pytest.fixture(scope="module")
def model():
    return tiny_backbone("llama")


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "adapter"
    save_adapter(add_adapter(model, LoraConfig(rank=2)), folder)
    remove_adapter(model, "default")
    return folder


def change_header(folder, change):
    """Rewrite a safetensors file's header; `change` gets its text and gives another."""
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = change(data[8 : 8 + length].decode()).encode(errors="replace")
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def loading(model):
    def load(folder):
        load_adapter(model, folder)
        remove_adapter(model, "default")

    return load


def test_configurations(good, model, tmp_path):
    refused = outcomes(good, ["adapter_config.json"], SEEDS, loading(model), AdapterError, tmp_path)
    assert len(SEEDS) // 4 < refused < len(SEEDS)


def test_headers(good, model, tmp_path):
    load = loading(model)

    def damage_and_load(folder):
        generator = np.random.default_rng(json.loads((folder / "seed.json").read_text())["seed"])
        change_header(folder, lambda text: mutated(text, generator))
        load(folder)

    def damage_notes_and_load(folder):
        generator = np.random.default_rng(json.loads((folder / "seed.json").read_text())["seed"])

        def change(text):
            header = json.loads(text)
            header["__metadata__"]["kerora"] = mutated(header["__metadata__"]["kerora"], generator)
            return json.dumps(header)

        change_header(folder, change)
        load(folder)

    for kind, attempt in enumerate((damage_and_load, damage_notes_and_load)):
        refused = 0
        for seed in SEEDS:
            work = tmp_path / f"{kind}-{seed}"
            work.mkdir()
            for file in good.iterdir():
                (work / file.name).write_bytes(file.read_bytes())
            (work / "seed.json").write_text(json.dumps({"seed": seed}))
            try:
                attempt(work)
            except AdapterError:
                refused += 1
        assert len(SEEDS) // 4 < refused < len(SEEDS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank_pattern", {"(.|.|.)*[!x]": 2}, "takes longer than"),
        ("alpha_pattern", {"(": 2}, "no regular expression"),
        ("rank_pattern", {"q_proj": "4"}, "rank_pattern"),
        ("r", 10**30, "from 1 to"),
        ("r", -1, "from 1 to"),
        ("lora_alpha", float("nan"), "lora_alpha"),
        ("lora_dropout", 7, "lora_dropout"),
        ("modules_to_save", [3], "modules_to_save"),
    ],
)
def test_fields_that_a_stranger_may_set(field, value, message, good, model, tmp_path):
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    began = time.monotonic()
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, tmp_path)
    assert time.monotonic() - began < 5


def test_a_header_that_announces_terabytes(good, tmp_path):
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def change(text):
        header = json.loads(text)
        name = next(name for name in header if name != "__metadata__")
        header[name] |= {"shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
        return json.dumps(header)

    change_header(tmp_path, change)
    with pytest.raises(AdapterError, match="damaged"):
        inspect_adapter(tmp_path)
