"""That a damaged or hostile GGUF file is an error, and takes no memory that it has no bytes for."""

import dataclasses
import struct
import tracemalloc

import gguf
import keras
import numpy as np
import pytest

from benchmarks.tiny_gguf import tiny_gguf
from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import huggingface_config
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_model import as_huggingface_folder
from kerora.models.gguf_tensors import GGUFTensors

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="reading a file does not depend on the backend"
)

VOCABULARY = {
    "ggml.model": "llama",
    "ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "b"],
    "ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    "ggml.scores": [0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0],
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 2,
    "chat_template": "{{ messages }}",
}
HUGE = 2**60


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tiny_gguf(
        "llama31_tied", path, gguf.GGMLQuantizationType.Q8_0, VOCABULARY, intermediate_size=64
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def with_experts(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tiny_gguf("qwen2_moe", path, vocabulary=VOCABULARY)
    return path.read_bytes()


@pytest.fixture(params=["whole", "with_experts", "qwen3_5", "gemma4", "gemma3n"])
def either(request, tmp_path):
    if request.param in ("whole", "with_experts"):
        return request.getfixturevalue(request.param)
    own = {"ggml.model": "gemma4", "ggml.merges": ["▁ a"]} if request.param == "gemma4" else {}
    tiny_gguf(request.param, tmp_path / "whole.gguf", vocabulary=VOCABULARY | own)
    use_all(tmp_path / "whole.gguf")
    return (tmp_path / "whole.gguf").read_bytes()


def use_all(path):
    """Everything of a file that loading looks at."""
    with as_huggingface_folder(path, with_tokenizer=True) as (_, tensors):
        return {name: tensors[name] for name in tensors}


def text(value):
    return struct.pack("<Q", len(value)) + value


def header(*, version=3, tensors=0, fields=0, body=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + body


def field(kind, value, key=b"key"):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name=b"t", shape=(32,), kind=0, offset=0):
    numbers = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + numbers + struct.pack("<IQ", kind, offset)


def with_data(head, size=4096):
    return head + bytes(-len(head) % 32) + bytes(size)


def test_it_reads_what_the_gguf_package_reads(whole, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    reader, file = gguf.GGUFReader(path), GGUFFile(path)
    assert set(file.tensors) == {tensor.name for tensor in reader.tensors}
    for expected in reader.tensors:
        np.testing.assert_array_equal(
            file.read(expected.name), gguf.dequantize(expected.data, expected.tensor_type)
        )
    expected = {
        key: entry.contents() for key, entry in reader.fields.items() if not key.startswith("GGUF.")
    }
    read = {
        key: getattr(value, "tolist", lambda v=value: v)() for key, value in file.fields.items()
    }
    assert read == expected


HOSTILE = {
    "empty": (b"", "no file, or an empty"),
    "no magic": (b"PK\x03\x04" + bytes(64), "does not start with"),
    "version": (header(version=9), "version is 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "tensor count": (header(tensors=HUGE), f"announces {HUGE} tensors"),
    "field count": (header(fields=HUGE), f"announces {HUGE} metadata"),
    "key length": (header(fields=1, body=struct.pack("<Q", HUGE) + bytes(64)), "cut off"),
    "string length": (header(fields=1, body=field(8, struct.pack("<Q", HUGE))), "cut off"),
    "array length": (header(fields=1, body=field(9, struct.pack("<IQ", 0, HUGE))), "announces"),
    "text array length": (
        header(fields=1, body=field(9, struct.pack("<IQ", 8, HUGE))),
        "announces",
    ),
    "text in an array": (
        header(fields=1, body=field(9, struct.pack("<IQQ", 8, 1, HUGE))),
        "cut off",
    ),
    "nested array": (header(fields=1, body=field(9, struct.pack("<IQ", 9, 0))), "unknown type 9"),
    "value type": (header(fields=1, body=field(77, bytes(8))), "unknown type 77"),
    "not UTF-8": (header(fields=1, body=field(8, text(b"\xff\xfe"))), "not UTF-8"),
    "field twice": (header(fields=2, body=field(0, b"\1") * 2), "'key' occurs twice"),
    "alignment": (
        header(fields=1, body=field(4, struct.pack("<I", 0), b"general.alignment")),
        "no power of two",
    ),
    "alignment type": (
        header(fields=1, body=field(8, text(b"32"), b"general.alignment")),
        "no power of two",
    ),
    "tensor twice": (with_data(header(tensors=2, body=tensor() * 2)), "'t' occurs twice"),
    "dimensions": (header(tensors=1, body=tensor(shape=(1,) * 9)), "9 dimensions"),
    "no elements": (with_data(header(tensors=1, body=tensor(shape=(32, 0)))), "cannot be"),
    "tensor type": (with_data(header(tensors=1, body=tensor(kind=4000))), "unknown type 4000"),
    "part of a block": (with_data(header(tensors=1, body=tensor(shape=(33,), kind=8))), "blocks"),
    "too large": (with_data(header(tensors=1, body=tensor(shape=(HUGE, HUGE)))), "cut off"),
    "outside": (with_data(header(tensors=1, body=tensor(offset=1 << 62))), "cut off"),
    "unaligned": (with_data(header(tensors=1, body=tensor(offset=3))), "multiple of 32"),
    "overlapping": (
        with_data(header(tensors=2, body=tensor(b"a") + tensor(b"b", offset=64))),
        "'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused(name, tmp_path):
    data, message = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelSourceError, match=message):
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_file_cut_off_anywhere_is_refused(either, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(either)
    end = max(tensor.start + tensor.size for tensor in GGUFFile(path).tensors.values())
    for size in [*range(0, 2000, 17), *range(2000, end, 997), end - 1]:
        path.write_bytes(either[:size])
        with pytest.raises(ModelSourceError):
            use_all(path)


def test_damaged_bytes_are_an_error_or_harmless(either, tmp_path):
    path, generator, refused = tmp_path / "model.gguf", np.random.default_rng(0), 0
    start = GGUFFile(_written(path, either)).tensors["token_embd.weight"].start
    for _ in range(300):
        damaged = bytearray(either)
        for position in generator.integers(0, start, 3):
            damaged[position] = generator.integers(256)
        try:
            use_all(_written(path, bytes(damaged)))
        except ModelSourceError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 10**9, "no tensor 'blk.999999999"),
        ("embedding_length", 10**9, "the metadata make it"),
        ("feed_forward_length", 10**9, "the metadata make it"),
        ("attention.head_count", 10**9, "the metadata make it"),
        ("attention.head_count_kv", 10**9, "the metadata make it"),
        ("attention.key_length", 10**9, "differ in length"),
        ("rope.dimension_count", 4, "only a part of each head"),
        ("expert_count", 4, "`llama.expert_used_count` must be a positive"),
        ("block_count", "two", "must be a positive number"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "must be a positive number"),
    ],
)
def test_metadata_that_contradict_the_tensors(key, value, message, whole, tmp_path):
    path = _written(tmp_path / "model.gguf", whole)
    file = GGUFFile(path)
    file.fields[f"llama.{key}"] = value
    with pytest.raises(ModelSourceError, match=message):
        huggingface_config(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("expert_count", 10**9, "of 1000000000 experts"),
        ("expert_count", 5, "the metadata make it"),
        ("expert_count", 0, "must be a positive number"),
        ("expert_count", "four", "must be a positive number"),
        ("expert_used_count", 5, "of 4 experts 5 are used"),
        ("expert_used_count", 1.5, "must be a whole number"),
        ("expert_used_count", None, "must be a positive number"),
        ("expert_feed_forward_length", 10**9, "the metadata make it"),
        ("expert_shared_feed_forward_length", 10**9, "the metadata make it"),
        ("expert_shared_feed_forward_length", None, "'blk.0.ffn_gate_shexp.weight' has the shape"),
    ],
)
def test_metadata_that_contradict_the_experts(key, value, message, with_experts, tmp_path):
    file = GGUFFile(_written(tmp_path / "model.gguf", with_experts))
    file.fields[f"qwen2moe.{key}"] = value
    with pytest.raises(ModelSourceError, match=message):
        huggingface_config(file)


def test_the_size_of_an_expert_that_no_field_says(with_experts, tmp_path):
    file = GGUFFile(_written(tmp_path / "model.gguf", with_experts))
    assert file.fields.pop("qwen2moe.expert_feed_forward_length") == 24
    # As llama.cpp does: the size of the dense layer over the number of experts that are used.
    assert huggingface_config(file)["moe_intermediate_size"] == 48 // 2


def test_the_gate_of_a_shared_expert_is_a_vector_or_a_matrix(with_experts, tmp_path):
    file, name = GGUFFile(_written(tmp_path / "model.gguf", with_experts)), "shared_expert_gate"
    gates = []
    for shape in ((32,), (1, 32)):
        for tensor in [key for key in file.tensors if "gate_inp_shexp" in key]:
            file.tensors[tensor] = dataclasses.replace(file.tensors[tensor], shape=shape)
        tensors = GGUFTensors(file, huggingface_config(file))
        gates.append(tensors[f"model.layers.1.mlp.{name}.weight"])
    assert gates[0].shape == (1, 32)
    np.testing.assert_array_equal(*gates)


def test_a_part_of_a_tensor_is_read_alone(tmp_path):
    values = np.random.default_rng(0).normal(size=(64, 128, 256)).astype("float32")
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3moe")
        writer.add_tensor("bank", gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = GGUFFile(tmp_path / "model.gguf")
        expected = file.read("bank")
        tracemalloc.start()
        try:
            parts = [file.read("bank", index)[:, 0].copy() for index in range(64)]
            assert tracemalloc.get_traced_memory()[1] < values.nbytes / 8
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(parts, expected[:, :, 0])
    for index in (-1, 64):
        with pytest.raises(IndexError, match=f"no part {index}"):
            file.read("bank", index)


@pytest.mark.parametrize(
    "divisors", [[1, 2, 2, 8], [1, 1, float("nan"), 8], [0.5, 1, 1, 8], [1, 8], [1, 8, 1, 8]]
)
def test_rotary_divisors_that_are_not_llama_3s(divisors, whole, tmp_path, monkeypatch):
    file = GGUFFile(_written(tmp_path / "model.gguf", whole))
    assert huggingface_config(file)["rope_parameters"]["original_max_position_embeddings"] == 16
    monkeypatch.setattr(file, "read", lambda name: np.array(divisors, "float32"))
    with pytest.raises(ModelSourceError, match=r"rope_freqs\.weight"):
        huggingface_config(file)


def _written(path, data):
    path.write_bytes(data)
    return path
