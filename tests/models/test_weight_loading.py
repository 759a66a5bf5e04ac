"""Which tensors of a Hugging Face folder a backbone takes."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.interchange import BOUND, difference
from benchmarks.tiny_transformers import tiny_transformers
from kerora.models.loading import load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_projections_that_no_layer_uses_may_be_stored(name, tmp_path):
    # As in the published files, where the last layers share an earlier one's keys and values.
    types = ["sliding_attention", "full_attention"] * 3
    base = tiny_transformers(name, tmp_path, num_kv_shared_layers=2, layer_types=types)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    first = next(key for key in tensors if key.endswith("layers.0.self_attn.k_proj.weight"))
    for part in ("k_proj", "v_proj", "k_norm"):
        name = first.replace("layers.0", "layers.5").replace("k_proj", part)
        assert name not in tensors
        tensors[name] = np.ones((4, 4), "float32")
    save_file(tensors, path, metadata={"format": "pt"})
    assert difference(load_task(tmp_path, preprocessor=None), base) < BOUND
