"""Merged KerasHub preset folders, against the adapted model that KerasHub and kerora compute."""

import json

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from tiny_backbones import tiny_backbone

import kerora
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.interchange import merge_folder, merge_preset, save_adapter
from kerora.models.errors import ModelSourceError

IDS = np.arange(12)[None] * 7 % 50


def outputs(model):
    inputs = {"token_ids": IDS.astype("int32"), "padding_mask": np.ones_like(IDS, "int32")}
    return keras.ops.convert_to_numpy(keras.ops.cast(model(inputs), "float32"))


def adapted_preset(family, folder, dtype="float32", **config):
    """A preset of a random backbone, and an adapter of it; the adapted backbone."""
    backbone = tiny_backbone(family, dtype=dtype)
    backbone.save_to_preset(str(folder / "base"))
    add_adapter(backbone, LoraConfig(rank=3, alpha=5, **config))
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    save_adapter(backbone, folder / "adapter")
    return backbone


def load(folder, **options):
    return keras_hub.models.Backbone.from_preset(str(folder), **options)


def close(found, expected, tolerance=1e-4):
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("family", ["gemma", "qwen2", "mixtral", "gpt2"])
def test_kerashub_loads_the_merged_preset(family, tmp_path, monkeypatch):
    monkeypatch.setattr(merge_preset, "BLOCK", 500)  # a few rows at a time
    if family in ("mixtral", "gpt2") and keras.config.backend() != "jax":
        pytest.skip("of the backend only the way in which the empty model is built depends")
    bias = "all" if family in ("qwen2", "gpt2") else "none"
    backbone = adapted_preset(family, tmp_path, targets="all-linear", bias=bias)
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected = outputs(backbone)
    assert not close(outputs(load(tmp_path / "base")), expected, 0.01)
    assert close(outputs(load(tmp_path / "merged")), expected)


def test_a_table_in_bfloat16(tmp_path):
    targets = ["token_embedding", "query"]
    backbone = adapted_preset("gemma", tmp_path, "bfloat16", targets=targets)
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    kerora.merge_adapter(backbone)
    merged = load(tmp_path / "merged", dtype="bfloat16")
    for found, expected in zip(merged.weights, backbone.weights, strict=True):
        found, expected = (
            keras.ops.convert_to_numpy(keras.ops.cast(v, "float32")) for v in (found, expected)
        )
        assert np.abs(found - expected).max() <= 2**-8 * np.abs(expected).max()


def test_sharded_weights_and_the_other_files(tmp_path):
    backbone = adapted_preset("llama", tmp_path, targets="all-linear")
    base = tmp_path / "base"
    load(base).save_weights(base / "model.weights.json", max_shard_size=2e-5)
    (base / "model.weights.h5").unlink()
    assert len(list(base.glob("model_*.weights.h5"))) > 1
    merge_folder(base, tmp_path / "adapter", tmp_path / "merged")
    names = [{file.name for file in (tmp_path / folder).iterdir()} for folder in ("base", "merged")]
    assert names[0] == names[1]
    assert close(outputs(load(tmp_path / "merged")), outputs(backbone))


def test_another_base_is_refused(tmp_path):
    adapted_preset("llama", tmp_path)
    file = tmp_path / "base" / "model.weights.h5"

    def scale(name, place):
        if isinstance(place, h5py.Dataset):
            place[...] = place[...] * 1.1

    with h5py.File(file, "r+") as opened:
        opened.visititems(scale)
    with pytest.raises(AdapterError, match="trained on another base"):
        merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", force=True)

    tiny_backbone("gemma").save_to_preset(str(tmp_path / "gemma"))
    with pytest.raises(AdapterError, match=r"another base.*GemmaBackbone, not a LlamaBackbone"):
        merge_folder(tmp_path / "gemma", tmp_path / "adapter", tmp_path / "other")
    with pytest.raises(AdapterError, match="q_proj' must have shape"):
        merge_folder(tmp_path / "gemma", tmp_path / "adapter", tmp_path / "other", force=True)


def test_an_index_or_a_link_that_leads_elsewhere(tmp_path):
    adapted_preset("llama", tmp_path)
    base, file = tmp_path / "base", tmp_path / "base" / "model.weights.h5"
    file.rename(tmp_path / "x.weights.h5")
    index = {"weight_map": {"/layers": "../x.weights.h5"}}
    (base / "model.weights.json").write_text(json.dumps(index))
    with pytest.raises(ModelSourceError, match="beside it"):
        merge_folder(base, tmp_path / "adapter", tmp_path / "merged")
    file.symlink_to(tmp_path / "x.weights.h5")
    with pytest.raises(ModelSourceError, match="leads out"):
        merge_folder(base, tmp_path / "adapter", tmp_path / "merged")
    file.unlink()
    file.write_bytes((tmp_path / "x.weights.h5").read_bytes()[:500])
    with pytest.raises(ModelSourceError, match="is damaged"):
        merge_folder(base, tmp_path / "adapter", tmp_path / "merged")
