"""What is read back from a run folder is of the right type or not taken."""

import dataclasses
import errno
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from kerora.evaluation import Answer, TokenScores
from kerora.recipe import Recipe, load_recipe
from kerora.run import _stored
from kerora.run_folder import RunError, StepRecord, claim_folder, open_run_folder, read_step_records
from kerora.run_measure import Measurement

ASKED = {"model": {"source": "tiny_gemma"}, "data": {"train": "tiny_gemma/train.jsonl"}}
MEASURED = Measurement(
    TokenScores(1.0, 2.7, 0.5, 10), 0.25, 4, [Answer("What?", None, "That."), Answer("a", "b", "c")]
)


def quickstart(**changes):
    return Recipe.model_validate({**ASKED, **changes})


def stored(folder, steps=4, **changes):
    record = {"steps": steps, "before": {**dataclasses.asdict(MEASURED), **changes}}
    (folder / "before.json").write_text(json.dumps(record))
    return _stored(folder / "before.json", "before")


def test_a_measurement_comes_back_as_it_was(tmp_path):
    assert stored(tmp_path) == (4, MEASURED)
    assert stored(tmp_path, scores=None)[1].scores is None
    no_number = stored(tmp_path, scores={**dataclasses.asdict(MEASURED.scores), "loss": math.nan})
    assert math.isnan(no_number[1].scores.loss)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 4.0},
        {"steps": True},
        {"scores": []},
        {"scores": {"loss": 1.0}},
        {"scores": {"loss": "1", "perplexity": 2.7, "token_accuracy": 0.5, "tokens": 10}},
        {"exact_match": "0.5"},
        {"asked": None},
        {"samples": {}},
        {"samples": [{"prompt": 1, "expected": None, "answer": "a"}]},
        {"samples": [["What?", None, "That."]]},
    ],
    ids=str,
)
def test_another_type_is_damage(tmp_path, changes):
    with pytest.raises(RunError, match="is damaged"):
        stored(tmp_path, **changes)


def test_lines_of_steps(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_step_records(file) == []
    lines = [
        b'{"step": 1, "loss": 2.5, "learning_rate": 0.1, "tokens": 7, "seconds": 0.5}',
        b'{"step": 2}',
        b'{"step": "3", "loss": 2.0}',
        b'{"step": 4, "loss": null}',
        b"[5, 1.0]",
        b'{"step": 6, "loss": 1.0, "tokens": {}}',
        b"\xff\xfe",
        b'{"step": 7, "loss": 1.5}',
        b'{"step": 8, "lo',
    ]
    file.write_bytes(b"\n".join(lines))
    assert read_step_records(file) == [StepRecord(1, 2.5, 7, 0.5), StepRecord(7, 1.5)]


@pytest.mark.parametrize(
    ("before", "written", "left"),
    [
        (None, None, None),
        (None, "before.json", {".lock", "recipe.yaml", "before.json"}),
        (None, "checkpoints/step-00000000/document.json", {".lock", "recipe.yaml", "checkpoints"}),
        ("", None, {".lock", "recipe.yaml"}),
        ("notes.txt", None, {".lock", "recipe.yaml", "notes.txt"}),
    ],
)
def test_a_new_run_that_fails_leaves_a_folder_only_for_what_it_wrote(
    before, written, left, tmp_path
):
    folder = tmp_path / "run"
    if before is not None:
        folder.mkdir()
    if before:
        (folder / before).write_text("mine")
    recipe = quickstart()
    with pytest.raises(ValueError, match="bad targets"), open_run_folder(folder, recipe):
        if written:
            (folder / written).parent.mkdir(parents=True, exist_ok=True)
            (folder / written).write_text("{}")
        raise ValueError("bad targets")
    assert (set(path.name for path in folder.iterdir()) if folder.exists() else None) == left
    with open_run_folder(folder, recipe) as again:
        assert again.recipe.exists()


@pytest.mark.parametrize(
    ("name", "adapter", "refused"),
    [
        ("recipe.yaml", {}, True),
        ("before.json", {}, True),
        ("validation.jsonl", {}, True),
        ("report.json", {}, True),
        ("samples.md", {}, True),
        ("adapter/thesis.txt", {}, True),
        ("adapter/thesis.txt", "none", False),
        ("model/train.py", {}, False),
        ("model/train.py", "none", True),
        ("notes.txt", {}, False),
    ],
)
def test_a_new_run_overwrites_nothing_of_others(name, adapter, refused, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    text = "# my notes: lr from sweep 12\n" + json.dumps(ASKED)
    file.write_text(text)
    recipe = quickstart(adapter=adapter)
    if refused:
        told = f"{tmp_path / name.split('/')[0]} is there already.*another output=DIR"
        with pytest.raises(RunError, match=told), open_run_folder(tmp_path, recipe):
            pass
    else:
        with open_run_folder(tmp_path, recipe) as folder:
            folder.before.write_text("{}")
        with open_run_folder(tmp_path, quickstart(adapter=adapter, steps=4)) as folder:
            assert not folder.before.exists()
            assert yaml.safe_load(folder.recipe.read_text())["steps"] == 4
    assert file.read_text() == text


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize(("old", "new"), [("seed: 0", "seed: 1"), ("seed", "# mine\nseed")])
def test_a_recipe_that_was_edited_in_its_run_folder_stays_and_is_not_run_there(
    began, old, new, tmp_path
):
    with open_run_folder(tmp_path, quickstart()) as folder:
        if began:
            folder.metrics.write_text("")
    text = folder.recipe.read_text()
    edited = text.replace(old, new)
    folder.recipe.write_text(edited)
    told = "was edited.*[Cc]opy it elsewhere" if began else "would overwrite it.*move it elsewhere"
    with pytest.raises(RunError, match=told), open_run_folder(tmp_path, load_recipe(folder.recipe)):
        pass
    assert edited != text and folder.recipe.read_text() == edited
    folder.recipe.write_text(text)
    with open_run_folder(tmp_path, load_recipe(folder.recipe)):
        assert folder.recipe.read_text() == text


def test_a_run_that_began_goes_on_beside_its_adapter(tmp_path):
    with open_run_folder(tmp_path, quickstart()) as folder:
        folder.metrics.write_text("")
        folder.adapter.mkdir()
        (folder.adapter / "adapter_config.json").write_text("{}")
    with open_run_folder(tmp_path, quickstart()):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = f"{re.escape(str(tmp_path))}: .*{re.escape(os.strerror(number))}"
    with pytest.warns(UserWarning, match=told), open_run_folder(tmp_path, quickstart()) as folder:
        assert folder.recipe.exists()


def test_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with open_run_folder("~/run", quickstart()):
        assert (tmp_path / "run" / "recipe.yaml").exists()


def test_runs_that_start_together_have_a_folder_each(tmp_path):
    (tmp_path / "file").write_text("")
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim_folder, [tmp_path / "runs" / "mine"] * 8))
    numbered = ["mine", *(f"mine-{number}" for number in range(2, 9))]
    assert sorted(path.name for path in claimed) == numbered
    with pytest.raises(RunError, match="cannot be written"):
        claim_folder(tmp_path / "file" / "mine")
    with (
        pytest.raises(ValueError, match="bad targets"),
        open_run_folder(claimed[0], quickstart(), claimed=True),
    ):
        raise ValueError("bad targets")
    assert not claimed[0].exists()
