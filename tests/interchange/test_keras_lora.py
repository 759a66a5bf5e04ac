"""Keras' own LoRA, as KerasHub enables, trains and saves it, taken over without loss."""

import warnings

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from tiny_backbones import tiny_backbone

import kerora
from kerora.adapters import AdapterError, adapter_configs, add_adapter
from kerora.adapters.factorization import factorize
from kerora.adapters.targets import Candidate
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.keras_lora import _standard_factors, has_keras_lora

IDS = np.arange(12)[None] * 7 % 50


def same_backbone(family):
    keras.utils.set_random_seed(5)  # a new layer's initial values leave a trace in the helper's
    return tiny_backbone(family)


def outputs(model):
    inputs = {"token_ids": IDS.astype("int32"), "padding_mask": np.ones_like(IDS, "int32")}
    return keras.ops.convert_to_numpy(model(inputs))


def randomize(layers, spread=0.3):
    rng = np.random.default_rng(3)
    for layer in layers:
        for variable in layer.trainable_variables:
            if "lora" in variable.name:
                variable.assign(rng.normal(0, spread, variable.shape))


def kerashub_lora(family, rank=2):
    """A backbone with KerasHub's own LoRA, its factors random."""
    backbone = same_backbone(family)
    backbone.enable_lora(rank)
    randomize([backbone])
    return backbone


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_a_file_of_kerashub_is_read_without_loss(family, tmp_path):
    tuned = kerashub_lora(family)
    expected = outputs(tuned)
    tuned.save_lora_weights(tmp_path / "x.lora.h5")
    model = same_backbone(family)
    before = outputs(model)
    load_adapter(model, tmp_path / "x.lora.h5")
    assert np.abs(expected - before).max() > 0.01
    assert close(outputs(model), expected)
    assert adapter_configs(model)["default"].rank == 8  # four query heads of rank 2

    save_adapter(model, tmp_path / "adapter")
    again = same_backbone(family)
    load_adapter(again, tmp_path / "adapter")
    assert close(outputs(again), expected)


def test_a_second_adapter_is_read_beside_the_first(tmp_path):
    tuned = kerashub_lora("llama")
    tuned.save_lora_weights(tmp_path / "x.lora.h5")
    model = same_backbone("llama")
    add_adapter(model, kerora.LoraConfig(rank=2, targets="all-linear"))
    load_adapter(model, tmp_path / "x.lora.h5", "second")
    assert close(outputs(model), outputs(tuned))


def test_biases_that_the_file_lacks_are_named(tmp_path):
    tuned = kerashub_lora("qwen2")
    expected = outputs(tuned)
    tuned.save_lora_weights(tmp_path / "x.lora.h5")
    model = same_backbone("qwen2")
    with pytest.warns(UserWarning, match="holds no biases, and KerasHub trains those of the 4"):
        load_adapter(model, tmp_path / "x.lora.h5")
    assert close(outputs(model), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kerashub_lora("llama").save_lora_weights(tmp_path / "y.lora.h5")
        load_adapter(same_backbone("llama"), tmp_path / "y.lora.h5")


@pytest.mark.parametrize(
    ("equation", "input_shape", "output_shape", "rank"),
    [
        ("abc,cd->abd", (3, 6), (None, 5), 2),
        ("abc,dc->abd", (3, 6), (None, 5), 2),
        ("btd,ndh->btnh", (3, 6), (None, 3, 4), 6),
        ("btd,dnh->btnh", (3, 8), (None, 3, 4), 6),
        ("btnh,nhd->btd", (3, 3, 4), (None, 7), 2),
        ("btnh,dnh->btd", (3, 3, 4), (None, 7), 6),
        ("btd,ndh->btnh", (3, 4), (None, 3, 4), 4),
        ("bed,edf->bef", (3, 6), (3, 5), 2),
        ("bed,efd->bef", (3, 6), (3, 5), 2),
        ("bed,dfe->bef", (3, 6), (3, 5), 5),
    ],
)
def test_every_layout_of_a_kernel(equation, input_shape, output_shape, rank):
    layer = keras.layers.EinsumDense(equation, output_shape)
    inputs = np.random.default_rng(0).normal(size=(2, *input_shape)).astype("float32")
    layer(inputs)
    layer.enable_lora(2, lora_alpha=2)
    randomize([layer])
    expected = keras.ops.convert_to_numpy(
        keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    )
    found = _standard_factors(
        Candidate(layer, "x", ()),
        *(keras.ops.convert_to_numpy(v) for v in (layer.lora_kernel_a, layer.lora_kernel_b)),
    )
    assert found.rank == rank
    split = factorize(equation, tuple(layer.kernel.shape), found.rank)
    assert (found.a.shape, found.b.shape) == (split.a_shape, split.b_shape)
    assert np.abs(np.einsum(split.join, found.a, found.b) - expected).max() < 1e-6


def causal_model(family):
    kinds = {"gemma": "GemmaCausalLM", "llama": "LlamaCausalLM", "qwen2": "QwenCausalLM"}
    return getattr(keras_hub.models, kinds[family])(same_backbone(family), preprocessor=None)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapt_takes_the_weights_over(family, tmp_path):
    model = causal_model(family)
    before = outputs(model)
    model.backbone.enable_lora(2)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:  # the biases of qwen2 are among them
        variable.assign(rng.normal(0, 0.3, variable.shape))
    for layer in model.backbone._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            layer.lora_alpha = 5
    expected = outputs(model)
    assert np.abs(expected - before).max() > 0.01
    kerora.adapt(model)
    assert close(outputs(model), expected)
    assert not has_keras_lora(model)
    assert not any("lora" in weight.name for weight in model.weights)
    trained = {weight.name for weight in model.trainable_variables}
    assert trained == {"kernel_a", "kernel_b"} | ({"bias"} if family == "qwen2" else set())

    model.save_adapter(tmp_path / "adapter")
    other = kerora.adapt(causal_model(family))
    other.load_adapter(tmp_path / "adapter")
    assert close(outputs(other), expected)
    kerora.remove_adapter(model)
    if family != "qwen2":
        assert close(outputs(model), before)


def test_adapt_trains_what_keras_load_weights_set_to_zero():
    model = causal_model("gemma")
    model.backbone.enable_lora(2)
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    expected = outputs(model)
    kerora.adapt(model)
    assert close(outputs(model), expected)
    assert all(
        keras.ops.convert_to_numpy(v).any()
        for v in model.trainable_variables
        if v.name == "kernel_a"
    )


def test_an_adapted_embedding_and_a_dense_layer_are_taken_over():
    model = causal_model("gemma")
    model.backbone.token_embedding.enable_lora(3, lora_alpha=2)
    model.backbone.transformer_layers[0].gating_ffw.enable_lora(2)
    randomize([model])
    expected = outputs(model)
    kerora.adapt(model)
    assert close(outputs(model), expected)


def test_backbone_load_lora_weights_reads_the_file(tmp_path):
    tuned = causal_model("llama")
    tuned.backbone.enable_lora(2)
    randomize([tuned])
    tuned.backbone.save_lora_weights(tmp_path / "x.lora.h5")
    model = kerora.adapt(causal_model("llama"))
    model.backbone.load_lora_weights(tmp_path / "x.lora.h5")
    assert close(outputs(model), outputs(tuned))
    model = kerora.adapt(causal_model("llama"))
    model.load_adapter(tmp_path / "x.lora.h5")
    assert close(outputs(model), outputs(tuned))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "x.lora.h5"
    kerashub_lora("llama").save_lora_weights(path)
    return path


def first(opened):
    return min((key for key in opened["lora"] if key != "vars"), key=int)


def rename(opened):
    opened.move(f"lora/{first(opened)}", "lora/900")


def misshape(opened):
    group = opened[f"lora/{first(opened)}/vars"]
    del group["lora_kernel_a"]
    group["lora_kernel_a"] = np.zeros((3, 3), "float32")


def unstored(opened):
    group = opened[f"lora/{first(opened)}/vars"]
    shape = group["lora_kernel_a"].shape
    del group["lora_kernel_a"]
    group.create_dataset("lora_kernel_a", shape, "float32")


def link(opened):
    group = opened[f"lora/{first(opened)}/vars"]
    del group["lora_kernel_a"]
    group["lora_kernel_a"] = h5py.ExternalLink("/etc/other.h5", "x")


def not_finite(opened):
    group = opened[f"lora/{first(opened)}/vars"]
    group["lora_kernel_a"][...] = np.nan


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rename, "layer '900', and this model has"),
        (misshape, "must have shape"),
        (unstored, "not stored in the file"),
        (link, "is a link"),
        (not_finite, "NaN"),
        (lambda opened: opened.__delitem__("lora"), "it lacks 'lora/vars/rank'"),
    ],
)
def test_a_damaged_file_changes_nothing(change, match, saved, tmp_path):
    path = tmp_path / "x.lora.h5"
    path.write_bytes(saved.read_bytes())
    with h5py.File(path, "r+") as opened:
        change(opened)
    model = same_backbone("llama")
    with pytest.raises(AdapterError, match=match):
        load_adapter(model, path)
    assert adapter_configs(model) == {}


def test_files_that_are_none(saved, tmp_path):
    path = tmp_path / "x.lora.h5"
    with pytest.raises(AdapterError, match="no file"):
        load_adapter(same_backbone("llama"), path)
    path.write_bytes(saved.read_bytes()[:300])
    with pytest.raises(AdapterError, match="is damaged"):
        load_adapter(same_backbone("llama"), path)
    with pytest.raises(AdapterError, match="another model"):
        load_adapter(same_backbone("gemma"), saved)
