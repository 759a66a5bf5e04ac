"""The other commands, and what all have in common."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from backends import once
from typer.testing import CliRunner

import kerora
from kerora.cli.main import app
from kerora.data.chat_templates import CHATML
from kerora.generation import GreedyDecoder
from kerora.models.bundled import bundled_path
from kerora.recipe import load_recipe
from kerora.run_measure import Measurement, Probe

COMMANDS = ("train", "recipe", "generate", "evaluate", "inspect", "merge", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command_line, command):
    shown = command_line.run(command, "--help")
    assert shown.returncode == 0
    assert f"Example: kerora {command}" in shown.stdout


def test_generate_shows_a_conversation(command_line):
    assert '-p \'{"messages": [{"role"' in command_line.run("generate", "--help").stdout


def test_help_imports_nothing_heavy(command_line):
    began = time.perf_counter()
    shown = command_line.run("--help")
    seconds = time.perf_counter() - began
    for command in COMMANDS:
        assert command in shown.stdout
    assert shown.stderr == ""
    assert seconds < 5, "a second on an idle machine"
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kerora.cli", "--help"],
        capture_output=True,
        text=True,
        env=command_line.environment,
    ).stderr
    assert "kerora.cli.main" in imported
    for heavy in ("keras", "jax", "tensorflow", "torch", "numpy"):
        assert f" {heavy}\n" not in imported


def test_recipe_prints_a_recipe(command_line, tmp_path):
    printed = command_line.run("recipe")
    path = tmp_path / "printed.yaml"
    path.write_text(printed.stdout)
    assert load_recipe(path).model.source == "tiny_gemma"


def test_generate_answers_every_prompt(command_line, whole_run):
    folder, _ = whole_run
    shown = json.loads((folder / "report.json").read_text())["after"]["samples"]
    row = json.dumps({"instruction": "What is the opposite of win?"})
    done = command_line.run(
        *("generate", "tiny_gemma", "--adapter", folder / "adapter", "--max-length", 8),
        *("--prompt", row, "--prompt", shown[1]["prompt"]),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n\n".join(s["answer"].strip() for s in shown) + "\n"


def test_chat_answers_line_by_line(command_line):
    done = command_line.run(
        "generate", "tiny_gemma", "--chat", "--max-length", 4, input="Hi.\nYes.\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") == 3


def test_evaluate_measures_what_the_run_did(command_line, whole_run):
    folder, _ = whole_run
    report = json.loads((folder / "report.json").read_text())["after"]
    done = command_line.run(
        *("evaluate", "tiny_gemma", command_line.folder / "heldout.jsonl"),
        *("--adapter", folder / "adapter", "--exact-match", 4, "--max-length", 8),
        *("--sequence-length", 64, "--batch-size", 2),
    )
    assert done.returncode == 0, done.stderr
    assert f"{report['scores']['loss']:.4f}" in done.stdout
    assert f"{report['scores']['perplexity']:,.2f}" in done.stdout
    assert f"{report['exact_match']:.1%}" in done.stdout


@once
def test_what_evaluate_says_of_a_bad_row_can_be_done_there(command_line, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"foo": 1}\n{"instruction": "Win?", "response": "Lose."}\n' * 2)
    command = ("evaluate", "tiny_gemma", rows, "--exact-match", 0, "--sequence-length", 64)
    done = command_line.run(*command)
    assert done.returncode == 1
    assert f"{rows}:1: unknown fields" in done.stderr
    assert "give a template such as" in done.stderr
    assert "set on_bad_row to 'skip'" in done.stderr
    done = command_line.run(*command, "--on-bad-row", "skip")
    assert done.returncode == 0, done.stderr
    assert "2 rows skipped" in done.stdout


@once
def test_inspect_tells_what_an_adapter_holds(command_line, whole_run):
    folder, _ = whole_run
    done = command_line.run("inspect", folder / "adapter")
    assert done.returncode == 0, done.stderr
    for part in ("tiny_gemma", "GemmaBackbone", "rank         4", "q_proj (x4), v_proj (x4)"):
        assert part in done.stdout


ADAPTER_COMMANDS = {
    "generate": ("tiny_gemma", "-p", "x"),
    "evaluate": ("tiny_gemma", "tiny_gemma/heldout.jsonl"),
    "merge": ("tiny_gemma", "--out", "merged"),
    "export": ("tiny_gemma", "--gguf", "adapter.gguf"),
}


@pytest.mark.parametrize("command", ADAPTER_COMMANDS)
def test_an_adapter_that_is_not_there_is_told_before_anything_heavy(
    command_line, command, tmp_path
):
    arguments = (command, *ADAPTER_COMMANDS[command], "--adapter")
    environment = {**command_line.environment, "KERAS_BACKEND": "none, and not imported"}
    run_folder = tmp_path / "run"
    (run_folder / "adapter").mkdir(parents=True)
    (run_folder / "adapter/adapter_config.json").write_text("{}")
    for given, message in {
        tmp_path / "nope": f"there is no adapter folder '{tmp_path / 'nope'}'",
        run_folder: f"is a run folder. Give its adapter: '{run_folder / 'adapter'}'",
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "kerora.cli", *arguments, given],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 1
        assert message in done.stderr, done.stderr


@once
def test_merge_says_its_result_alone(command_line, tmp_path):
    model = kerora.from_preset("tiny_gemma")
    model.backbone.enable_lora(2)
    model.save_adapter(tmp_path / "adapter")
    done = command_line.run(
        "merge", "tiny_gemma", "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("8 tensors changed; ")


def test_an_empty_answer_of_a_model_that_converses_says_what_to_try(tmp_path, monkeypatch):
    nothing = np.zeros(0, np.int32)
    monkeypatch.setattr(GreedyDecoder, "__call__", lambda self, prompts: [nothing for _ in prompts])
    model = shutil.copytree(bundled_path("tiny_gemma"), tmp_path / "model")
    ask = ["generate", str(model), "-p", "It's"]
    done = CliRunner().invoke(app, ask)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "\n", "")
    (model / "chat_template.jinja").write_text(CHATML)
    done = CliRunner().invoke(app, ask)
    assert (done.exit_code, done.stdout) == (0, "\n")
    advised = shlex.split(done.stderr.splitlines()[-1])
    assert advised == ["-p", '{"messages": [{"role": "user", "content": "It\'s"}]}']
    assert CliRunner().invoke(app, [*ask[:-1], advised[1]]).stderr == ""


@once
def test_a_preset_that_keeps_no_chat_template_is_told_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr("kerora.data.chat_templates._BUILT_IN", ())
    nothing = np.zeros(0, np.int32)
    monkeypatch.setattr(GreedyDecoder, "__call__", lambda self, prompts: [nothing for _ in prompts])
    monkeypatch.setattr(Probe, "measure", lambda self: Measurement(None, None, 0, []))
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps({"messages": talk}) + "\n") * 2)
    asked = json.dumps({"messages": talk[:1]})
    generate = ("generate", "tiny_gemma", "-p")
    for words, warns in (
        (("evaluate", "tiny_gemma", str(rows)), True),
        ((*generate, asked, "-p", asked), True),
        ((*generate, "Hi.", "-p", "Hello.", "--chat"), True),
        ((*generate, "Hi."), False),
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.stderr
        told = [w for w in seen if "a KerasHub preset keeps no chat template" in str(w.message)]
        assert len(told) == warns, words


@once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml: cannot read this recipe"),
        (("generate", "tiny_gemma"), "give --prompt, or --chat"),
        (("generate", "tiny_gema", "-p", "x"), "Did you mean 'tiny_gemma'?"),
        (("generate", "tiny_gemma", "-p", '{"foo": 1}'), "--prompt: unknown fields (found ['foo']"),
        (("evaluate", "tiny_gemma", "nowhere.jsonl"), "no such file: 'nowhere.jsonl'"),
        (("inspect", "nowhere"), "nowhere"),
        (("merge", "nowhere", "--adapter", __file__, "--out", "b"), "a folder on this machine"),
        (
            ("merge", "model.gguf", "--adapter", __file__, "--out", "b"),
            "`kerora export model.gguf --adapter ADAPTER --gguf ADAPTER.gguf`",
        ),
    ],
)
def test_a_wrong_word_ends_with_a_message_and_exit_code_1(command_line, arguments, message):
    done = command_line.run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
