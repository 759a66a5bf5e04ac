"""Every snippet of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
MAKE = ("make quickstart", "make test")


def _environment() -> dict[str, str]:
    # The snippets call `kerora` and `python` as a user with the environment activated does.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def test_readme_shows_code_in_known_languages():
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "text", "yaml"}
    assert sum(language == "python" for language, _ in BLOCKS) >= 2


def test_python_snippets_run_in_order(workplace):
    blocks = [code for language, code in BLOCKS if language == "python"]
    # Optax trains on JAX alone, as the README says beside that snippet.
    runnable = [c for c in blocks if keras.config.backend() == "jax" or "import optax" not in c]
    code = "\n".join(runnable)
    (workplace / "snippets.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "snippets.py"],
        cwd=workplace,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="tests/cli runs the commands on every backend"
)
def test_shell_snippets_run_in_order(workplace):
    code = "\n".join(code for language, code in BLOCKS if language == "bash")
    lines = [line for line in code.splitlines() if line not in MAKE]
    # Measurements take minutes and real models; they run as a dry parse of their arguments.
    lines = [f"{line} --help >/dev/null" if " benchmarks." in line else line for line in lines]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=workplace,
        env={**_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]


def test_relative_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links)
