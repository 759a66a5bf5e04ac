"""Runs without adapter, from random weights, on rows of other kinds."""

from __future__ import annotations

import json
import re

import keras
import keras_hub
import numpy as np
import pytest
import yaml

import kerora
from kerora.cli.model import load
from kerora.data.chat_templates import CHATML
from kerora.data.encoding import Encoder
from kerora.interchange import merge_folder
from kerora.recipe import Recipe
from kerora.run import run
from kerora.run_folder import RunError, open_run_folder


def recipe(folder, **changes) -> Recipe:
    rows = folder / "rows.jsonl"
    rows.write_text('{"Text": "The cat sat on the mat and looked at the moon for long."}\n' * 8)
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
    with open_run_folder(tmp_path / "run", recipe(tmp_path, checkpoint_seconds=1.0)):
        pass  # which changes no result
    changed = recipe(tmp_path, steps=4, adapter={"rank": 2}, checkpoint_seconds=1.0)
    with (
        pytest.raises(RunError, match="steps: 3 there, 4 now") as caught,
        open_run_folder(tmp_path / "run", changed),
    ):
        pass
    assert "adapter.rank: '(none)' there, 2 now" in str(caught.value)
    assert "checkpoint_seconds" not in str(caught.value)


def test_a_run_does_not_go_on_over_other_rows(tmp_path, monkeypatch):
    asked = recipe(tmp_path)
    rows = tmp_path / "rows.jsonl"
    began_with = rows.read_text()

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("kerora.run._train", cut_off)
        run(asked, tmp_path / "run")
    rows.write_text(began_with.replace("cat", "dog"))
    with pytest.raises(RunError, match=rf"data changed since .* began: {re.escape(str(rows))}\."):
        run(asked, tmp_path / "run")
    rows.write_text(began_with)
    before = tmp_path / "run" / "before.json"
    record = json.loads(before.read_text())
    for damage in ({}, {"data": []}, {"data": {str(rows): 1}}):
        rest = {name: value for name, value in record.items() if name != "data"}
        before.write_text(json.dumps(rest | damage))
        with pytest.raises(RunError, match=r"before\.json is damaged: "):
            run(asked, tmp_path / "run")
    before.write_text(json.dumps(record))
    assert run(asked, tmp_path / "run").steps == 3


TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@pytest.mark.parametrize("adapter", [{"rank": 2, "targets": ["query"]}, "none"])
def test_a_chat_template_goes_with_what_was_trained(tmp_path, adapter):
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    model = {"source": "tiny_gemma", "chat_template": str(tmp_path / "mine.jinja")}
    rows = tmp_path / "chats.jsonl"
    rows.write_text('{"prompt": "Say hello.", "response": "Hello."}\n' * 8)
    data = {"train": str(rows), "validation": 0.0, "template": "{prompt} {response}"}
    result = run(recipe(tmp_path, model=model, adapter=adapter, data=data), tmp_path / "run")
    (tmp_path / "mine.jinja").unlink()
    if adapter == "none":
        again = kerora.from_preset(result.folder.model)
    else:
        again = load("tiny_gemma", result.folder.adapter)
        merge_folder("tiny_gemma", result.folder.adapter, tmp_path / "merged")
        assert kerora.from_preset(tmp_path / "merged").chat_template == TEMPLATE
    encoder = Encoder(
        again.preprocessor.tokenizer, sequence_length=64, chat_template=again.chat_template
    )
    asked = [{"role": "user", "content": "Hi."}]
    assert encoder.prompt_text(asked) == "[user] Hi.\n[assistant] "


def test_a_task_takes_a_chat_template_by_name(tmp_path):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    assert model.chat_template is None
    model.chat_template = "chatml"
    assert model.chat_template == CHATML
    with pytest.raises(kerora.DataError, match="one of chatml"):
        model.chat_template = "chatlm"
    model.backbone.enable_lora(2)
    model.save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_bytes(b"\xff")
    other = kerora.from_preset("tiny_gemma", load_weights=False)
    with pytest.raises(kerora.AdapterError, match="cannot be read as a chat template"):
        other.load_adapter(tmp_path / "adapter", force=True)
    model.chat_template = None
    model.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter", force=True)
    assert other.chat_template is None
