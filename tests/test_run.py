"""Runs without adapter, from random weights, on rows of other kinds."""

from __future__ import annotations

import json

import keras
import keras_hub
import numpy as np
import pytest
import yaml

from kerora.recipe import Recipe
from kerora.run import run
from kerora.run_folder import RunError, open_run_folder


def recipe(folder, **changes) -> Recipe:
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "The cat sat on the mat and looked at the moon for long."}\n' * 8)
    sections = {
        "model": {"source": "tiny_gemma", "weights": "random"},
        "adapter": "none",
        "data": {"train": str(rows), "validation": 0.25},
        "sequence_length": 32,
        "batch_size": 2,
        "steps": 3,
        "samples": 1,
        "evaluation": {"max_new_tokens": 4},
    }
    return Recipe.model_validate({**sections, **changes})


def test_full_training_from_random_weights_ends_in_a_preset(tmp_path):
    result = run(recipe(tmp_path), tmp_path / "run")
    assert result.before.scores.perplexity > 500, "random weights know nothing"
    assert result.after.scores.loss < result.before.scores.loss
    assert not result.folder.adapter.exists()
    loaded = keras_hub.models.CausalLM.from_preset(str(result.folder.model), dtype="float32")
    assert type(loaded).__name__ == "GemmaCausalLM"
    inputs = {"token_ids": np.ones((1, 4), "int32"), "padding_mask": np.ones((1, 4), "int32")}
    assert np.isfinite(keras.ops.convert_to_numpy(loaded(inputs))).all()
    assert result.after.samples[0].prompt == "The cat sat on the mat and looked"
    assert json.loads(result.folder.report.read_text())["steps"] == 3


def test_a_run_that_never_began_may_have_another_recipe(tmp_path):
    with open_run_folder(tmp_path / "run", recipe(tmp_path)):
        pass
    with open_run_folder(tmp_path / "run", recipe(tmp_path, steps=4)) as folder:
        assert yaml.safe_load(folder.recipe.read_text())["steps"] == 4


def test_another_recipe_shows_what_differs(tmp_path):
    with open_run_folder(tmp_path / "run", recipe(tmp_path)) as folder:
        assert yaml.safe_load(folder.recipe.read_text())["steps"] == 3
        folder.metrics.write_text("")
    changed = recipe(tmp_path, steps=4, adapter={"rank": 2})
    with (
        pytest.raises(RunError, match="steps: 3 there, 4 now") as caught,
        open_run_folder(tmp_path / "run", changed),
    ):
        pass
    assert "adapter.rank: '(none)' there, 2 now" in str(caught.value)
