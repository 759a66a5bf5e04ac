"""Runs of the command line, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """\
model:
  source: tiny_gemma
adapter:
  rank: 4
  targets: [query, value]
  dropout: 0.1
data:
  train: tiny_gemma/train.jsonl
  validation: {validation}
sequence_length: 64
batch_size: 2
steps: 60
optimizer:
  learning_rate: 2e-3
samples: 2
evaluation:
  every: 20
  exact_match: 4
  max_new_tokens: 8
checkpoint_seconds: 0.2
"""
COMMAND = [sys.executable, "-m", "kerora.cli"]


class CommandLine:
    """Starts `kerora` with the backend of the tests, and a compilation cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        heldout = folder / "heldout.jsonl"
        heldout.write_text(
            '{"instruction": "What is the opposite of win?", "response": "Lose."}\n'
            '{"instruction": "What is the opposite of small?", "response": "Big."}\n'
            '{"instruction": "What is the opposite of hot?", "response": "Cold."}\n'
            '{"instruction": "What is the opposite of wet?", "response": "Dry."}\n'
        )
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE.format(validation=heldout))

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            **options,  # type: ignore[call-overload]
        )

    def train(self, output: Path, *changes: str) -> subprocess.CompletedProcess[str]:
        return self.run("train", self.recipe, f"output={output}", *changes)


@pytest.fixture(scope="session")
def command_line(tmp_path_factory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("command_line"))


@pytest.fixture(scope="session")
def whole_run(command_line) -> tuple[Path, str]:
    """The folder and the output of a run that nothing interrupted."""
    folder = command_line.folder / "whole"
    done = command_line.train(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr
