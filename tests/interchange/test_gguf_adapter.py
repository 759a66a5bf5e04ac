"""That a GGUF adapter holds, by its own numbers, what it does in kerora."""

import gguf
import keras
import numpy as np
import pytest
from backends import once_uncompiled
from typer.testing import CliRunner

from benchmarks.interchange import GGUF_FAMILIES, GGUF_TARGETS
from benchmarks.tiny_gguf import tiny_gguf
from benchmarks.tiny_logits import keras_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.cli.main import app
from kerora.interchange import save_adapter, save_gguf_adapter
from kerora.models.gguf_file import GGUFFile
from kerora.models.loading import load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled


def adapted(path, targets="all-linear", rank=4, **options):
    model = load_task(path, preprocessor=None)
    add_adapter(model, LoraConfig(rank=rank, alpha=6, targets=targets, **options))
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    return model


def merged_file(base, adapter, path):
    """The base's GGUF file with the adapter's deltas added, as the format defines them."""
    reader, delta = gguf.GGUFReader(base), gguf.GGUFReader(adapter)
    factors = {tensor.name: tensor.data for tensor in delta.tensors}
    alpha = delta.get_field("adapter.lora.alpha").contents()
    data = bytearray(base.read_bytes())
    for tensor in reader.tensors:
        if f"{tensor.name}.lora_a" in factors:
            a, b = factors.pop(f"{tensor.name}.lora_a"), factors.pop(f"{tensor.name}.lora_b")
            value = tensor.data + alpha / a.shape[0] * b @ a
            start = int(tensor.data_offset)
            data[start : start + tensor.n_bytes] = value.astype("float32").tobytes()
    assert not factors
    path.write_bytes(data)
    return delta


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "llama"),
        ("qwen2", "qwen2"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3"),
        ("mixtral", "llama"),
        ("qwen2_moe", "qwen2moe"),
        ("qwen3_moe", "qwen3moe"),
        ("qwen3_5", "qwen35"),
        ("gemma4", "gemma4"),
        ("smollm3", "smollm3"),
    ],
)
def test_the_deltas_of_the_file_make_the_adapted_model(name, architecture, tmp_path):
    base, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    tiny_gguf(name, base, **GGUF_FAMILIES.get(name, {}))
    model = adapted(base, GGUF_TARGETS.get(name, "all-linear"))
    save_gguf_adapter(model, adapter)
    written = merged_file(base, adapter, tmp_path / "merged.gguf")
    assert written.get_field("general.architecture").contents() == architecture
    assert written.get_field("general.type").contents() == "adapter"
    assert written.get_field("adapter.type").contents() == "lora"
    merged = keras_logits(load_task(tmp_path / "merged.gguf", preprocessor=None))
    np.testing.assert_allclose(keras_logits(model), merged, atol=1e-3)
    assert np.abs(merged - keras_logits(load_task(base, preprocessor=None))).max() > 0.1


def test_what_the_format_cannot_hold_is_refused_and_nothing_is_lost(tmp_path):
    base, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    tiny_gguf("qwen2", base)
    adapter.write_bytes(b"earlier")
    with pytest.raises(AdapterError, match="trained biases"):
        save_gguf_adapter(adapted(base, bias="all"), adapter)
    with pytest.raises(AdapterError, match=r"adapter on 'model\.embed_tokens'"):
        save_gguf_adapter(adapted(base, targets=["token_embedding"]), adapter)
    with pytest.raises(AdapterError, match="No adapter named"):
        save_gguf_adapter(load_task(base, preprocessor=None), adapter)
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(AdapterError, match=r"Llama3Backbone.*Received: Sequential"):
        save_gguf_adapter(dense, adapter)
    assert adapter.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.gguf",
        "model-hf",
        "model.gguf",
    ]


def test_what_llama_cpp_never_adapts_is_refused(tmp_path):
    tiny_gguf("gemma3n", tmp_path / "model.gguf")
    for target, module in (
        ("per_layer_model_projection", "model.per_layer_model_projection"),
        ("modality_router", "model.layers.0.altup.modality_router"),
        ("altup_projection_2", r"model\.altup_projections\.\d"),
    ):
        model = adapted(tmp_path / "model.gguf", targets=[target], rank=2)
        with pytest.raises(AdapterError, match=f"adapter on '{module}'"):
            save_gguf_adapter(model, tmp_path / "adapter.gguf")


def test_the_language_model_of_one_that_sees_has_the_same_file(tmp_path):
    tiny_transformers("gemma4_vision", tmp_path / "base")
    model = adapted(tmp_path / "base", GGUF_TARGETS["gemma4"])
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    written = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    assert {"blk.0.attn_q.weight.lora_a", "blk.5.proj.weight.lora_b"} <= written


def test_the_command_writes_the_same_file(tmp_path):
    base, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    tiny_gguf("qwen2", base)
    model = adapted(base)
    adapter.symlink_to(tmp_path / "stored.gguf")
    save_gguf_adapter(model, adapter)
    assert adapter.is_symlink()
    save_adapter(model, tmp_path / "peft")
    out = tmp_path / "new" / "out.gguf"

    def export(place):
        command = ["export", base, "--adapter", tmp_path / "peft", "--gguf", place]
        return CliRunner().invoke(app, [str(word) for word in command])

    done = export(out)
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert out.read_bytes() == adapter.read_bytes()
    for there in (out, base):
        before = there.read_bytes()
        done = export(there)
        assert done.exit_code == 1
        assert f"'{there}' exists" in done.stderr
        assert there.read_bytes() == before
    done = export(base / "out.gguf")
    assert done.exit_code == 1
    assert f"'{base / 'out.gguf'}' cannot be written: File exists ('{base}')" in done.stderr


def test_a_file_that_holds_no_model_says_so(tmp_path):
    base, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    tiny_gguf("qwen2", base)
    save_gguf_adapter(adapted(base), adapter)
    assert GGUFFile(adapter).fields["general.type"] == "adapter"
    with pytest.raises(ValueError, match=r"holds no model, but the type 'adapter'"):
        load_task(adapter)
