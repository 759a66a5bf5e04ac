"""That a GGUF file gives the model that it was made from."""

import json
import os
from pathlib import Path

import gguf
import keras
import ml_dtypes
import numpy as np
import pytest
from backends import once

import kerora
from benchmarks.interchange import BOUND, GGUF_FAMILIES, gguf_difference
from benchmarks.tiny_gguf import ARCHITECTURES, tiny_gguf
from benchmarks.tiny_logits import keras_logits, torch_logits
from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import huggingface_config
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_model import as_huggingface_folder
from kerora.models.loading import chat_template, load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")

KINDS = gguf.GGMLQuantizationType
SENTENCE = (
    "Photosynthesis is the process by which plants use sunlight, water and carbon dioxide to "
    "create oxygen and energy in the form of sugar."
)


def real_file(name: str) -> Path:
    folder = os.environ.get("KERORA_REAL_MODELS")
    if folder is None:
        pytest.skip("KERORA_REAL_MODELS is not set")
    path = Path(folder) / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"KERORA_REAL_MODELS holds no {path.name}")
    return path


def linear(name):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    if name == "gemma3":
        local = {"rope_type": "default", "rope_theta": 700.0}
        rope = {"full_attention": rope, "sliding_attention": local}
    return {"rope_parameters": rope}


def tokens_of(model, text: str) -> list[int]:
    return [int(index) for index in np.asarray(model.preprocessor.tokenizer(text))]


@pytest.mark.parametrize("name", GGUF_FAMILIES)
def test_a_file_gives_the_model_that_it_was_made_from(name, tmp_path):
    if keras.backend.backend() != "torch" and name not in ("llama", "gemma3"):
        pytest.skip("the rest of the way is that of a folder, which is tested on each backend")
    assert gguf_difference(name, tmp_path) < BOUND


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("llama", kind) for kind in ("F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")),
        *(("qwen3_5", "Q8_0"), ("gemma4", "Q8_0"), ("smollm3", "Q4_0")),
    ],
)
def test_quantised_weights_are_those_that_the_file_holds(name, kind, tmp_path):
    if keras.backend.backend() != "torch":
        pytest.skip("dequantisation does not depend on the backend")
    sizes = {"intermediate_size": 64}
    if name == "gemma4":
        sizes["hidden_size_per_layer_input"] = 32
    reference = tiny_gguf(name, tmp_path / "model.gguf", KINDS[kind], **sizes)
    model = load_task(tmp_path / "model.gguf", preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=2e-4)


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3"])
def test_a_rotary_factor_without_a_type_is_linear_scaling(name, key, tmp_path, monkeypatch):
    # As llama.cpp reads it.
    if keras.backend.backend() != "torch":
        pytest.skip("the rest of the way is that of a folder, which is tested on each backend")

    def add_factor(writer, factor):
        writer.add_float32(f"{writer.arch}.{key}", factor)

    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_scaling_type", lambda *_: None)
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_scaling_factor", add_factor)
    reference = tiny_gguf(name, tmp_path / "model.gguf", **GGUF_FAMILIES[name], **linear(name))
    assert f"{ARCHITECTURES.get(name, name)}.{key}" in GGUFFile(tmp_path / "model.gguf").fields
    model = load_task(tmp_path / "model.gguf", preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@once
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, {"rope_type": "default"}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        ({"rope.scaling.type": "linear"}, {"rope_type": "default"}),
        (
            {"rope.scaling.type": "linear", "rope.scale_linear": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
)
def test_which_rotary_factor_counts(fields, expected, tmp_path):
    # As in llama.cpp's `load_hparams`.
    tiny_gguf("llama", tmp_path / "model.gguf")
    file = GGUFFile(tmp_path / "model.gguf")
    file.fields |= {f"llama.{key}": value for key, value in fields.items()}
    rope = huggingface_config(file)["rope_parameters"]
    assert rope == {**expected, "rope_theta": 500.0}


@once
def test_rotary_positions_that_are_scaled_in_two_ways_are_refused(tmp_path):
    tiny_gguf("llama31_tied", tmp_path / "model.gguf")
    file = GGUFFile(tmp_path / "model.gguf")
    file.fields["llama.rope.scaling.factor"] = 4.0
    with pytest.raises(ModelSourceError, match=r"'linear' by 4.0, and that of 'rope_freqs.weight'"):
        huggingface_config(file)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_quantised_experts_are_those_that_the_file_holds(name, kind, tmp_path):
    if keras.backend.backend() != "jax":
        pytest.skip("dequantisation does not depend on the backend")
    sizes = {"intermediate_size": 64}
    if name != "mixtral":
        sizes["moe_intermediate_size"] = 32
    if name == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = 96
    fields = {**GGUF_FAMILIES[name], **sizes}
    reference = tiny_gguf(name, tmp_path / "model.gguf", KINDS[kind], **fields)
    assert GGUFFile(tmp_path / "model.gguf").tensors["blk.1.ffn_up_exps.weight"].kind == KINDS[kind]
    model = load_task(tmp_path / "model.gguf", preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_transformers_reads_the_tests_files_alike(name, tmp_path):
    import transformers

    if keras.backend.backend() != "jax":
        pytest.skip("it is about the tests' own files")
    reference = tiny_gguf(name, tmp_path / "model.gguf")
    config = reference.config  # A GGUF file without a vocabulary tells transformers no config.
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=config
    )
    np.testing.assert_allclose(torch_logits(again.eval()), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"), [("smollm2-135m-instruct", 2.314), ("gemma-3-270m", 1.748)]
)
def test_the_likelihood_of_real_files(name, expected):
    if keras.backend.backend() != "jax":
        pytest.skip("loading is tested on small files here")
    path = real_file(name)
    model = kerora.from_preset(str(path), dtype="float32")
    ids = tokens_of(model, SENTENCE)
    if name.startswith("gemma"):
        ids = [model.preprocessor.tokenizer.start_token_id, *ids]
    logits = keras_logits(model, np.array([ids]))[0]
    shifted = logits - logits.max(-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    likelihood = -log_probability[np.arange(len(ids) - 1), ids[1:]].mean()
    # The known figures are of the same weights rounded to bfloat16.
    assert abs(likelihood - expected) < 0.005
    template = model.chat_template
    assert "<|im_start|>assistant" in template if "smollm2" in name else template is None


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_tensors_are_those_of_the_folder_made_from_the_file(name):
    from safetensors import safe_open

    if keras.backend.backend() != "jax":
        pytest.skip("reading a file does not depend on the backend")
    path = real_file(name)
    with (
        as_huggingface_folder(path, with_tokenizer=False) as (folder, tensors),
        safe_open(path.with_suffix("") / "model.safetensors", "np") as expected,
    ):
        assert set(tensors) == set(expected.keys())
        for key in sorted(tensors)[::7]:
            rounded = tensors[key].astype(ml_dtypes.bfloat16)
            assert (rounded == expected.get_tensor(key)).all(), key
        config = json.loads((Path(folder) / "config.json").read_text())
    known = json.loads((path.with_suffix("") / "config.json").read_text())
    for key in set(config) & set(known) - {"rms_norm_eps"}:
        assert config[key] == known[key], key
    assert config["rms_norm_eps"] == pytest.approx(known["rms_norm_eps"])


def test_the_type_of_the_weights_is_what_was_asked_for(tmp_path):
    tiny_gguf("llama", tmp_path / "model.gguf")
    model = load_task(tmp_path / "model.gguf", dtype="bfloat16", preprocessor=None)
    assert model.backbone.token_embedding.embeddings.dtype == "bfloat16"


def test_the_chat_template_of_a_file(tmp_path):
    path = tmp_path / "model.gguf"
    tiny_gguf("llama", path, vocabulary={"chat_template": "{{ messages }}"})
    assert chat_template(path) == "{{ messages }}"
    tiny_gguf("llama", path)
    assert chat_template(path) is None


def test_a_file_without_tokenizer_says_so(tmp_path):
    tiny_gguf("llama", tmp_path / "model.gguf")
    with pytest.raises(ModelSourceError, match=r"model\.gguf.*preprocessor=None"):
        load_task(tmp_path / "model.gguf")


def test_a_tensor_without_a_place_is_refused(tmp_path):
    tiny_gguf("llama", tmp_path / "model.gguf", attention_bias=True)
    with pytest.raises(ModelSourceError, match=r"no place.*model\.gguf.*k_proj\.bias"):
        load_task(tmp_path / "model.gguf", preprocessor=None)


def test_an_architecture_that_is_not_read_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert GGUFFile(tmp_path / "model.gguf").fields["general.architecture"] == "mamba"
    with pytest.raises(ModelSourceError, match=r"'mamba'; read are llama, gemma"):
        load_task(tmp_path / "model.gguf")


def test_a_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    tiny_gguf("llama", path, vocabulary={"chat_template": "{{ messages }}"})
    read, opened = GGUFFile.__init__, []

    def counting(self, name):
        opened.append(str(name))
        read(self, name)

    monkeypatch.setattr(GGUFFile, "__init__", counting)
    assert kerora.from_preset(path, preprocessor=None).chat_template == "{{ messages }}"
    assert opened == [str(path)]
