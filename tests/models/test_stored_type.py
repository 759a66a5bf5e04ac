"""Which models lose nothing when they are loaded in bfloat16."""

import pytest

from benchmarks.tiny_transformers import tiny_transformers
from kerora.models.loading import load_backbone
from kerora.models.stored_type import is_stored_in_bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_of_a_hugging_face_folder(tmp_path, dtype):
    import torch

    model = tiny_transformers("llama", tmp_path)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    assert is_stored_in_bfloat16(tmp_path) is (dtype == "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_of_a_preset(tmp_path, dtype):
    backbone = load_backbone("tiny_gemma", dtype=dtype)
    backbone.save_to_preset(tmp_path)
    assert is_stored_in_bfloat16(tmp_path) is (dtype == "bfloat16")
