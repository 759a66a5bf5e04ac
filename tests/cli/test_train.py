"""`kerora train`: what it prints and what it leaves in the run folder."""

from __future__ import annotations

import json
import math

import yaml

from kerora.recipe import load_recipe


def test_it_says_what_it_is_about_to_do(whole_run, command_line):
    _, said = whole_run
    for part in (
        "tiny_gemma (float32)",
        "Trainable: ",
        "rows read",
        "tokens (",
        "60 of 2 rows of 64 tokens",
        "First step after",
        "step 60/60",
        "tokens/s",
        "exact match of 4 answers",
    ):
        assert part in said, said
    assert "cuda" not in said


def test_the_run_folder_holds_all_that_is_promised(whole_run, command_line):
    folder, _ = whole_run
    recipe = load_recipe(command_line.recipe)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipe.model_dump()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 61))
    for line in metrics:
        assert set(line) >= {
            "step",
            "loss",
            "learning_rate",
            "tokens",
            "tokens_per_second",
            "seconds",
        }
        assert math.isfinite(line["loss"])
        assert 0 < line["tokens"] <= 2 * 64
    rates = [line["learning_rate"] for line in metrics]
    assert max(rates) == rates[2] or math.isclose(max(rates), 2e-3, rel_tol=1e-5)
    assert rates[-1] < 1e-4
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = (folder / "samples.md").read_text()
    assert "What is the opposite of win?" in samples
    assert samples.count("Before:") == samples.count("After:") == 2
    assert (folder / "adapter/adapter_config.json").exists()
    assert (folder / "adapter/adapter_model.safetensors").exists()
    assert list((folder / "checkpoints").iterdir())
    report = json.loads((folder / "report.json").read_text())
    assert report["after"]["scores"]["loss"] < report["before"]["scores"]["loss"]
    validation = [json.loads(line) for line in (folder / "validation.jsonl").open()]
    assert [line["step"] for line in validation] == [0, 20, 40, 60]


def test_a_finished_run_says_so_and_another_recipe_is_refused(whole_run, command_line):
    folder, _ = whole_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = command_line.train(folder)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    other = command_line.train(folder, "adapter.rank=2")
    assert other.returncode == 1
    assert "adapter.rank: 4 there, 2 now" in other.stderr
    assert "Traceback" not in other.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
