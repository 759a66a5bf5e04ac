"""That a folder from a stranger loads or is refused, and asks for nothing that it has no bytes for.

`KERORA_FUZZ_SEEDS=1000 pytest` tries more mutations than the few that every run does.
"""

import json
import os
import shutil

import keras
import pytest
from hostile_json import outcomes
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.tiny_transformers import tiny_transformers
from kerora.models.bundled import bundled_path
from kerora.models.errors import ModelSourceError
from kerora.models.loading import chat_template, load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="reading a file does not depend on the backend"
)
SEEDS = range(int(os.environ.get("KERORA_FUZZ_SEEDS", "30")))


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface") / "model"
    model = tiny_transformers("llama31_tied", folder, vocab_size=260, num_hidden_layers=1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate([*alphabet, "<s>", "</s>", "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset") / "model"
    names = shutil.ignore_patterns("*.jsonl")
    return shutil.copytree(bundled_path("tiny_gemma"), folder, ignore=names)


def use(folder):
    chat_template(folder)
    model = load_task(folder)
    if model.preprocessor is not None:
        model.preprocessor.tokenizer("a b")


def change(folder, name, **fields):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_huggingface_folders(huggingface, tmp_path):
    use(huggingface)
    files = [
        *("config.json", "tokenizer_config.json", "config.json", "tokenizer.json"),
        *("model.safetensors.index.json", "generation_config.json"),
    ]
    refused = outcomes(huggingface, files, SEEDS, use, ModelSourceError, tmp_path)
    assert len(SEEDS) // 3 < refused < len(SEEDS)


def test_presets(preset, tmp_path):
    use(preset)
    files = ["config.json", "task.json", "preprocessor.json", "tokenizer.json", "metadata.json"]
    refused = outcomes(preset, files, SEEDS, use, ModelSourceError, tmp_path)
    assert len(SEEDS) // 4 < refused < len(SEEDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10**12}, "`vocab_size` can be"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` can be"),
        ({"hidden_size": -32}, "`hidden_size` must be a whole number"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` must be a positive number"),
        ({"intermediate_size": "48"}, "`intermediate_size` must be"),
        ({"num_attention_heads": None}, "unsupported operand|num_attention_heads"),
        ({"rope_parameters": []}, "`rope_parameters` must be an object"),
        # Each passes alone; together they are more than the file holds.
        ({"vocab_size": 20_000, "hidden_size": 20_000, "head_dim": None}, "more values than"),
        ({"hidden_size": 64, "head_dim": 16}, "does not fit"),
        ({"model_type": "mamba9"}, "mamba9"),
        ({"model_type": "x" * 100_000}, "`model_type` must be a text"),
        ({"architectures": 3}, "`architectures` must be"),
    ],
)
def test_configurations_that_contradict_the_weights(fields, message, huggingface, tmp_path):
    folder = shutil.copytree(huggingface, tmp_path / "model")
    change(folder, "config.json", **fields)
    with pytest.raises(ModelSourceError, match=message):
        load_task(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3, "a.bin"])
def test_an_index_that_names_files_elsewhere(name, huggingface, tmp_path):
    folder = shutil.copytree(huggingface, tmp_path / "model")
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "model.safetensors")
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    change(folder, "model.safetensors.index.json", weight_map={**weights, "model.norm": name})
    with pytest.raises(ModelSourceError, match="must name safetensors files beside it"):
        load_task(folder)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"class_name": "Lambda", "module": "keras.layers", "config": {}}, "'Lambda'"),
        ({"class_name": "TFSMLayer", "module": "keras.layers", "config": {}}, "'TFSMLayer'"),
        ({"class_name": "__lambda__", "config": {"value": "4w=="}}, "'__lambda__'"),
        ({"class_name": "Popen", "module": "subprocess", "config": {}}, "'Popen'"),
        (
            {"class_name": "function", "module": "keras.utils", "config": "get_file"},
            "'function'",
        ),
        (
            {
                "class_name": "function",
                "module": "keras.utils",
                "config": "get_file",
                "registered_name": "keras_hub>GemmaBackbone",
            },
            "'function'",
        ),
        ({"class_name": "run", "module": "keras_hub.src.tests.x", "config": {}}, "'run'"),
    ],
)
def test_a_preset_that_names_other_classes(described, message, preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["kernel_initializer"] = described
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=message):
        load_task(folder)


def test_a_preset_that_names_a_file_of_the_machine(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "model")
    config = json.loads((folder / "tokenizer.json").read_text())
    config["config"]["proto"] = "/etc/passwd"
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match="`proto`"):
        load_task(folder)


def test_a_preset_larger_than_its_weights(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "model")
    for name, inside in (("config.json", ()), ("task.json", ("config", "backbone"))):
        config = whole = json.loads((folder / name).read_text())
        for key in inside:
            config = config[key]
        config["config"]["vocabulary_size"] = 10**12
        (folder / name).write_text(json.dumps(whole))
    with pytest.raises(ModelSourceError, match="more values than its weights"):
        load_task(folder)
