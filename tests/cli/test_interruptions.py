"""A run that is killed, stopped or refused goes on as if nothing had happened, or loses nothing."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import keras
import numpy
import pytest
from backends import once

from kerora.models.bundled import bundled_path

KILLS = 10 if keras.backend.backend() == "jax" else 2


def lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in lines(folder / "metrics.jsonl")]


def wait_for_steps(process, folder: Path, more: int, seconds: float = 300) -> bool:
    """Until so many steps were logged; False if the process ended before."""
    wanted = (losses(folder) or [(0, 0.0)])[-1][0] + more
    before = time.monotonic()
    while time.monotonic() - before < seconds:
        if process.poll() is not None:
            return False
        logged = losses(folder)
        if logged and logged[-1][0] >= wanted:
            return True
        time.sleep(0.002)
    raise AssertionError("the run took too long to make a step")


def test_a_run_that_is_killed_again_and_again_ends_like_a_whole_one(command_line, whole_run):
    whole, _ = whole_run
    folder = command_line.folder / "killed"
    chance = random.Random(7)
    kills = 0
    for number in range(KILLS):
        process = command_line.start("train", command_line.recipe, f"output={folder}")
        if number % 5 == 1:
            time.sleep(chance.uniform(0.2, 8))  # while it imports, loads, measures or compiles
        else:
            wait_for_steps(process, folder, chance.randint(1, 5))
            time.sleep(chance.uniform(0, 0.15))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills == KILLS, "the run was over before it had been killed often enough"
    last = command_line.train(folder)
    assert last.returncode == 0, last.stderr
    assert losses(folder) == losses(whole)
    assert [step for step, _ in losses(folder)] == list(range(1, 61))
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
    reports = [json.loads((place / "report.json").read_text()) for place in (folder, whole)]
    for part in ("before", "after"):
        assert reports[0][part] == reports[1][part]


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the rows of a mixture are the same on every backend"
)
def test_a_mixture_that_is_killed_ends_like_a_whole_one(command_line, tmp_path):
    rows = bundled_path("tiny_gemma/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "many.jsonl").write_text("".join(rows[:60]))
    (tmp_path / "few.jsonl").write_text("".join(rows[60:80]))
    changes = (
        f"data.train={{{tmp_path}/many.jsonl: 3, {tmp_path}/few.jsonl: 2}}",
        "data.validation=0.1",
        "steps=30",  # several epochs
        "samples=0",
        "evaluation.exact_match=0",
    )
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = command_line.train(whole, *changes)
    assert done.returncode == 0, done.stderr
    process = command_line.start("train", command_line.recipe, f"output={folder}", *changes)
    assert wait_for_steps(process, folder, 16)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    last = command_line.train(folder, *changes)
    assert last.returncode == 0, last.stderr
    assert "Continuing after step" in last.stdout
    assert losses(folder) == losses(whole)
    assert [step for step, _ in losses(folder)] == list(range(1, 31))
    assert lines(folder / "validation.jsonl") == lines(whole / "validation.jsonl")


def test_ctrl_c_saves_and_says_how_to_continue(command_line, whole_run):
    whole, _ = whole_run
    folder = command_line.folder / "stopped"
    process = command_line.start(
        "train", command_line.recipe, f"output={folder}", "checkpoint_seconds=3600"
    )
    assert wait_for_steps(process, folder, 5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"Continue with\n  kerora train {command_line.recipe}" in said
    assert "Traceback" not in said
    stopped_at = losses(folder)[-1][0]
    assert (folder / "checkpoints" / f"step-{stopped_at:08d}").is_dir()
    last = command_line.train(folder, "checkpoint_seconds=3600")
    assert last.returncode == 0, last.stderr
    assert f"Continuing after step {stopped_at}" in last.stdout
    assert losses(folder) == losses(whole)


def test_a_loss_that_is_not_finite_leaves_the_last_good_adapter(command_line):
    folder = command_line.folder / "exploded"
    done = command_line.train(
        folder,
        "adapter.alpha=1e30",
        "optimizer.name=sgd",
        "optimizer.learning_rate=1.0",
        "optimizer.clip_norm=null",
        "checkpoint_seconds=0",
    )
    assert done.returncode == 1, done.stdout
    assert "not finite" in done.stderr or "is nan" in done.stderr or "is inf" in done.stderr
    assert str(folder / "adapter") in done.stderr
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    assert all(numpy.isfinite(tensor).all() for tensor in tensors.values())


def test_a_folder_that_cannot_be_written_is_told_at_once(command_line, tmp_path):
    (tmp_path / "file").write_text("")
    done = command_line.train(tmp_path / "file" / "run")
    assert done.returncode == 1
    assert "this run folder cannot be written: Not a directory" in done.stderr


def test_two_processes_do_not_share_a_folder(command_line, tmp_path):
    folder = tmp_path / "run"
    first = command_line.start("train", command_line.recipe, f"output={folder}")
    while not (folder / "recipe.yaml").exists():
        time.sleep(0.05)
    second = command_line.train(folder)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "another kerora process is running in this folder" in second.stderr


@once
def test_a_bad_row_is_named_with_file_and_line(command_line, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "response": "b"}\n' * 3 + "no json\n")
    done = command_line.train(tmp_path / "run", f"data.train={rows}")
    assert done.returncode == 1
    assert f"{rows}:4" in done.stderr
    assert "on_bad_row" in done.stderr
    assert not (tmp_path / "run").exists()
