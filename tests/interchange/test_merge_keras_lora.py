"""KerasHub's `.lora.h5` merged into folders, against the model that KerasHub itself trained."""

import shutil

import keras
import keras_hub
import numpy as np
import pytest

from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.adapters import AdapterError
from kerora.interchange.merge import merge_folder
from kerora.models.bundled import bundled_path
from kerora.models.loading import load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="merging files does not depend on the backend"
)


def trained_by_kerashub(model, file):
    """The model with KerasHub's own LoRA, its factors random, also saved to `file`."""
    model.backbone.enable_lora(2)
    rng = np.random.default_rng(3)
    for variable in model.backbone.trainable_variables:
        if "lora" in variable.name:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    model.backbone.save_lora_weights(file)
    return model


@pytest.mark.filterwarnings("ignore:.*holds no biases")
@pytest.mark.parametrize("name", ["llama31_tied", "gemma3", "qwen2"])
def test_huggingface_folders(name, tmp_path):
    base, file, merged = tmp_path / "base", tmp_path / "x.lora.h5", tmp_path / "merged"
    plain = torch_logits(tiny_transformers(name, base))
    expected = keras_logits(trained_by_kerashub(load_task(base, preprocessor=None), str(file)))
    assert merge_folder(base, file, merged) > 0
    again = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype="float32").eval()
    assert np.abs(torch_logits(again) - expected).max() < 1e-4
    assert np.abs(plain - expected).max() > 1e-2


def test_presets(tmp_path):
    base, file, merged = tmp_path / "base", tmp_path / "x.lora.h5", tmp_path / "merged"
    shutil.copytree(bundled_path("tiny_gemma"), base, ignore=shutil.ignore_patterns("*.jsonl"))
    expected = keras_logits(trained_by_kerashub(load_task(base, dtype="float32"), str(file)))
    merge_folder(base, file, merged)
    again = keras_hub.models.CausalLM.from_preset(str(merged), dtype="float32")
    # The preset stores float16.
    scale = np.abs(expected).max()
    assert np.abs(keras_logits(again) - expected).max() < 5e-3 * scale


def test_a_file_of_another_model_is_refused(tmp_path):
    tiny_transformers("llama", tmp_path / "base", num_hidden_layers=1)
    tiny_transformers("llama", tmp_path / "other", num_hidden_layers=3)
    file = tmp_path / "x.lora.h5"
    trained_by_kerashub(load_task(tmp_path / "other", preprocessor=None), str(file))
    with pytest.raises(AdapterError, match="saved from another model"):
        merge_folder(tmp_path / "base", file, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
