"""That a table which was changed before PEFT adapted it is not dropped without a word."""

import keras
import numpy as np
import pytest

from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import IDS, tiny_transformers
from kerora import from_preset
from kerora.adapters import AdapterError
from kerora.interchange import base_tables, load_adapter, merge_folder
from kerora.models.loading import load_task

pytest.importorskip("peft")
pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from peft_models import load, tuned_by_peft  # noqa: E402 - needs peft

CHANGED = r"'(model\.embed_tokens|lm_head)\.weight' .* `kerora merge BASE"


def tuned(folder, change, family="llama", **fields):
    """A base, and an adapter that PEFT trained once `change` had been added to some of its rows."""
    base = tiny_transformers(family, folder / "base")
    with torch.no_grad():
        base.get_input_embeddings().weight[torch.tensor(np.unique(IDS)[-3:])] += change
    targets = ["embed_tokens", "q_proj"]
    return tuned_by_peft(base, folder / "adapter", target_modules=targets, **fields)


@pytest.mark.parametrize(
    ("family", "fields"), [("llama", {}), ("qwen2_tied", {"ensure_weight_tying": True})]
)
def test_a_changed_table_is_refused(family, fields, tmp_path, monkeypatch):
    monkeypatch.setattr(base_tables, "BLOCK", 500)  # a few rows at a time
    tuned(tmp_path, 0.1, family, **fields)
    model = load_task(tmp_path / "base", preprocessor=None)
    with pytest.raises(AdapterError, match=CHANGED):
        load_adapter(model, tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter", force=True)


def test_what_the_error_advises(tmp_path):
    expected = torch_logits(tuned(tmp_path, 0.1))
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    np.testing.assert_allclose(torch_logits(load(tmp_path / "merged")), expected, atol=1e-4)
    merged = load_task(tmp_path / "merged", preprocessor=None)
    np.testing.assert_allclose(keras_logits(merged), expected, atol=1e-4)


def test_merging_into_a_preset_refuses_it_too(tmp_path):
    tuned(tmp_path, 0.1)
    from_preset(tmp_path / "base", preprocessor=None).save_to_preset(tmp_path / "preset")
    merge = tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged"
    with pytest.raises(AdapterError, match=CHANGED):
        merge_folder(*merge)
    assert merge_folder(*merge, force=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_table_that_is_the_bases_own_is_read(dtype, tmp_path):
    if dtype == "float16" and keras.config.backend() != "jax":
        pytest.skip("types do not depend on the backend")
    tuned(tmp_path, 0.0)
    model = from_preset(tmp_path / "base", preprocessor=None, dtype=dtype)
    load_adapter(model, tmp_path / "adapter")
    if dtype == "float32":
        model = from_preset(tmp_path / "base", preprocessor=None)
        model.save_to_preset(tmp_path / "preset")
        assert merge_folder(tmp_path / "preset", tmp_path / "adapter", tmp_path / "merged")
