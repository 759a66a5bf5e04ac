"""What files of Qwen 3.5, Gemma 3n and Gemma 4 say of their layers, and what is not believed."""

import gguf
import numpy as np
import pytest
from backends import once_uncompiled

from benchmarks.interchange import BOUND
from benchmarks.tiny_gguf import tiny_gguf
from benchmarks.tiny_logits import keras_logits, torch_logits
from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import huggingface_config
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_tensors import GGUFTensors
from kerora.models.loading import load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled

ARCHITECTURES = {
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "gemma4": "gemma4",
    "gemma3n": "gemma3n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    for name in ARCHITECTURES:
        tiny_gguf(name, folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in ARCHITECTURES}


def changed(path, name, changes):
    file = GGUFFile(path)
    for key, value in changes.items():
        file.fields[f"{ARCHITECTURES[name]}.{key}"] = value
    return file


def numbers(*values, dtype="int32"):
    return np.array(values, dtype)


HUGE = 10**9
SHAPE = "the metadata make it"
CONTRADICTIONS = [
    ("qwen3_5", "block_count", HUGE, "no tensor 'blk.999999999"),
    ("qwen3_5", "nextn_predict_layers", 2, "of its 2 blocks 2 predict"),
    ("qwen3_5", "nextn_predict_layers", HUGE, "blocks 1000000000 predict"),
    ("qwen3_5", "nextn_predict_layers", -1, "must be a positive number"),
    ("qwen3_5", "full_attention_interval", 1, "no tensor 'blk.0.attn_q"),
    ("qwen3_5", "full_attention_interval", HUGE, "no tensor 'blk.1.attn_qkv"),
    ("qwen3_5", "attention.recurrent_layers", numbers(1, 0, 1), "must be 2 truth values"),
    ("qwen3_5", "attention.recurrent_layers", numbers(1, 3), "must be 2 truth values"),
    ("qwen3_5", "attention.recurrent_layers", numbers(0, 0), "no tensor 'blk.0.attn_q"),
    ("qwen3_5", "ssm.group_count", HUGE, "4 heads of values share 1000000000"),
    ("qwen3_5", "ssm.group_count", 1, SHAPE),
    ("qwen3_5", "ssm.time_step_rank", 2 * HUGE, SHAPE),
    ("qwen3_5", "ssm.inner_size", HUGE, SHAPE),
    ("qwen3_5", "ssm.inner_size", 30, SHAPE),
    ("qwen3_5", "ssm.state_size", HUGE, SHAPE),
    ("qwen3_5", "ssm.conv_kernel", HUGE, SHAPE),
    ("qwen3_5", "ssm.conv_kernel", None, "must be a positive number"),
    ("qwen3_5", "rope.dimension_count", 3, "3 of each head's 16 numbers"),
    ("qwen3_5", "rope.dimension_count", 18, "18 of each head's 16 numbers"),
    ("qwen3_5", "rope.scaling.type", "yarn", "rotary scaling is 'yarn'"),
    ("qwen3_5", "rope.scaling.type", numbers(1, 2), "rotary scaling is '.1 2.'"),
    ("qwen3_5", "attention.head_count_kv", HUGE, SHAPE),
    ("qwen3_5_moe", "expert_feed_forward_length", HUGE, SHAPE),
    ("qwen3_5_moe", "expert_shared_feed_forward_length", HUGE, SHAPE),
    ("gemma4", "block_count", HUGE, "no tensor 'blk.999999999"),
    ("gemma4", "attention.sliding_window_pattern", numbers(1), "must be 6 truth values"),
    ("gemma4", "attention.sliding_window_pattern", 6, "must be 6 truth values"),
    ("gemma4", "attention.sliding_window_pattern", numbers(*[1] * 6), "last layer has no full"),
    ("gemma4", "attention.sliding_window_pattern", numbers(*[0] * 6), SHAPE),
    ("gemma4", "attention.shared_kv_layers", 6, "the last 6 of its 6 layers share"),
    ("gemma4", "attention.shared_kv_layers", 1, "the last 1 of its 6 layers share"),
    ("gemma4", "attention.shared_kv_layers", HUGE, "the last 1000000000 of its 6 layers"),
    ("gemma4", "attention.shared_kv_layers", numbers(0), "must be a positive number"),
    ("gemma4", "attention.key_length", HUGE, "is not the 1000000000 of its keys"),
    ("gemma4", "attention.value_length_swa", 8, "is not the 16 of its keys"),
    ("gemma4", "rope.dimension_count", 8, "is not the 32 of its keys"),
    ("qwen3_5", "rope.scale_linear", 4.0, "rotary scaling is 'linear'"),
    ("gemma4", "rope.scaling.factor", 4.0, "rotary scaling is 'linear'"),
    ("gemma4", "attention.head_count_kv", HUGE, SHAPE),
    ("gemma4", "attention.head_count_kv", numbers(2, 2, 2, 2, 2, 1), "one number of them"),
    ("gemma4", "attention.head_count_kv", numbers(2, 2, 0, 2, 2, 2), "6 positive whole numbers"),
    ("gemma4", "feed_forward_length", HUGE, SHAPE),
    ("gemma4", "feed_forward_length", numbers(48, 48, 48, 48, 48, 40), "has one width"),
    ("gemma4", "feed_forward_length", numbers(48.5, dtype="float32"), "6 positive whole numbers"),
    ("gemma4", "embedding_length_per_layer_input", HUGE, SHAPE),
    ("gemma3n", "block_count", HUGE, "no tensor 'blk.999999999"),
    ("gemma3n", "altup.num_inputs", HUGE, SHAPE),
    ("gemma3n", "altup.active_idx", 3, "active one of its 3 AltUp inputs is number 3"),
    ("gemma3n", "activation_sparsity_scale", numbers(0, 0), "must be 6 numbers"),
    ("gemma3n", "activation_sparsity_scale", numbers(*[np.nan] * 6, dtype="f4"), "must be 6 num"),
    ("gemma3n", "feed_forward_length", numbers(48, 48, 48, 48, 48, 48), SHAPE),
    ("gemma3n", "attention.shared_kv_layers", 5, "the last 5 of its 6 layers share"),
    ("gemma3n", "embedding_length_per_layer_input", HUGE, SHAPE),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), CONTRADICTIONS)
def test_metadata_that_contradict_the_tensors(name, key, value, message, files):
    huggingface_config(GGUFFile(files[name]))
    with pytest.raises(ModelSourceError, match=message):
        huggingface_config(changed(files[name], name, {key: value}))


@pytest.mark.parametrize(
    "divisors", [[2.0, *[1.0] * 15], [*[1.0] * 15, 4.0], [1e30] * 16, [np.nan] * 16]
)
def test_rotary_divisors_that_are_not_gemma_4s(divisors, files, monkeypatch):
    file = GGUFFile(files["gemma4"])
    assert huggingface_config(file)["rope_parameters"]["full_attention"] == {
        "rope_type": "proportional",
        "rope_theta": 1_000_000.0,
        "partial_rotary_factor": 0.25,
    }
    monkeypatch.setattr(file, "read", lambda name: np.array(divisors, "float32"))
    with pytest.raises(ModelSourceError, match=r"rope_freqs\.weight"):
        huggingface_config(file)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
        {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 9.0,
        },
        {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
    ],
    ids=["shared keys, wide layers", "values that are keys", "experts"],
)
def test_what_layers_of_gemma_4_differ_in(fields, tmp_path):
    types = ["sliding_attention", "full_attention"] * 2
    path = tmp_path / "model.gguf"
    reference = tiny_gguf("gemma4", path, num_hidden_layers=4, layer_types=types, **fields)
    logits = keras_logits(load_task(path, preprocessor=None))
    assert np.abs(logits - torch_logits(reference)).max() < BOUND


def extended(path, out, added):
    """A copy of a file with further tensors."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    for name in added:
        writer.add_tensor(name, np.ones((32, 32), "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(out)


def test_blocks_that_predict_further_tokens_are_left_out(files, tmp_path):
    path = files["qwen3_5"]
    added = ["blk.2.attn_norm.weight", "blk.2.nextn.eh_proj.weight"]
    file = extended(path, tmp_path / "model.gguf", added)
    with pytest.raises(ModelSourceError, match=r"no place for 2 .*blk\.2\.attn_norm"):
        GGUFTensors(file, huggingface_config(file))
    file.fields |= {"qwen35.block_count": 3, "qwen35.nextn_predict_layers": 1}
    config, own = huggingface_config(file), GGUFFile(path)
    assert config == huggingface_config(own)
    assert set(GGUFTensors(file, config)) == set(GGUFTensors(own, config))


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_keys_of_layers_that_share_them_are_left_out(name, tmp_path):
    path = tmp_path / "model.gguf"
    types = ["sliding_attention", "full_attention"] * 3
    tiny_gguf(name, path, num_kv_shared_layers=2, layer_types=types)
    added = ["blk.5.attn_k.weight", "blk.5.attn_v.weight", "blk.5.attn_k_norm.weight"]
    file = extended(path, tmp_path / "extended.gguf", added)
    tensors = GGUFTensors(file, huggingface_config(file))
    assert "model.layers.3.self_attn.k_proj.weight" in tensors
    assert not any(key.startswith("model.layers.5.self_attn.k") for key in tensors)


def test_a_decay_that_grows_is_refused(files, monkeypatch):
    file = GGUFFile(files["qwen3_5"])
    tensors = GGUFTensors(file, huggingface_config(file))
    assert np.isfinite(tensors["model.layers.0.linear_attn.A_log"]).all()
    monkeypatch.setattr(file, "read", lambda *_: np.array([-1, 0, -1, -1], "float32"))
    with pytest.raises(ModelSourceError, match=r"'blk\.0\.ssm_a' must hold negative"):
        tensors["model.layers.0.linear_attn.A_log"]
