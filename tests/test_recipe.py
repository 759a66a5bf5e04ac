"""Recipes: defaults, overrides, and what is said about wrong ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from kerora.recipe import RecipeError, commented_recipe, load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"

MINIMAL = """\
model:
  source: tiny_gemma
data:
  train: tiny_gemma/train.jsonl
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "recipe.yaml").splitlines()


def test_a_recipe_needs_only_a_model_and_data(write):
    recipe = load_recipe(write(MINIMAL))
    assert recipe.adapter.alpha == 2 * recipe.adapter.rank
    assert recipe.epochs == 1


def test_steps_replace_epochs(write):
    recipe = load_recipe(write(MINIMAL + "steps: 7\n"))
    assert (recipe.steps, recipe.epochs) == (7, None)
    recipe = load_recipe(write(MINIMAL + "epochs: 3\n"), ["steps=7"])
    assert (recipe.steps, recipe.epochs) == (7, None)
    recipe = load_recipe(write(MINIMAL + "steps: 7\n"), ["epochs=3"])
    assert (recipe.steps, recipe.epochs) == (None, 3)


def test_the_commented_recipe_is_a_recipe_of_every_key_and_default(write):
    text = commented_recipe()
    printed = yaml.safe_load(text)
    recipe = load_recipe(write(text))
    assert recipe == load_recipe(write(MINIMAL))
    expected = recipe.model_dump()
    assert set(printed) == set(expected)
    for name, section in expected.items():
        if isinstance(section, dict):
            assert set(printed[name]) == set(section)
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), f"{line} has no comment"


def test_a_resolved_recipe_is_a_recipe(write):
    recipe = load_recipe(write(MINIMAL), ["steps=7", "adapter.rank=3"])
    again = load_recipe(write(yaml.safe_dump(recipe.model_dump())))
    assert again == recipe


def test_a_chat_template_is_kept_as_its_file_holds_it(write, tmp_path):
    text = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}\n"
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    recipe = load_recipe(write(MINIMAL), [f"model.chat_template={path}"])
    path.write_text("{{ 'changed' }}")
    assert recipe.model.chat_template == text
    assert load_recipe(write(yaml.safe_dump(recipe.model_dump()))) == recipe
    named = load_recipe(write(MINIMAL), ["model.chat_template=chatml"])
    assert named.model.chat_template == "chatml"


def test_overrides_are_yaml(write):
    recipe = load_recipe(
        write(MINIMAL),
        ["adapter.targets=[query, value]", "optimizer.learning_rate=1e-3", "packing=false"],
    )
    assert recipe.adapter.targets == ["query", "value"]
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.packing is False


def test_every_problem_is_told_with_its_line(write):
    path = write(
        "model:\n"
        "  sorce: tiny_gemma\n"
        "  dtype: fp32\n"
        "adapter:\n"
        "  rank: four\n"
        "  aplha: 3\n"
        "data:\n"
        "  train: tiny_gemma/trian.jsonl\n"
        "  validation: 0.9\n"
        "optimiser:\n"
        "  name: adam\n"
        "batch_size: 2.5\n"
        "samples: yes\n"
    )
    lines = problems(path)
    expected = [
        ("recipe.yaml:1: model.source: missing", "expected text"),
        ("recipe.yaml:2: model.sorce: no such key.", "Did you mean 'source'?"),
        ("recipe.yaml:3: model.dtype: expected auto, float32", "Received: 'fp32'"),
        ("recipe.yaml:5: adapter.rank: expected a whole number (at least 1)", "'four'"),
        ("recipe.yaml:6: adapter.aplha: no such key.", "Did you mean 'alpha'?"),
        ("recipe.yaml:8: data.train: no such file", "Did you mean 'tiny_gemma/train.jsonl'?"),
        ("recipe.yaml:9: data.validation: expected text", "at most 0.5). Received: 0.9"),
        ("recipe.yaml:10: optimiser: no such key.", "Did you mean 'optimizer'?"),
        ("recipe.yaml:12: batch_size: expected a whole number", "Received: 2.5"),
        ("recipe.yaml:13: samples: expected a whole number", "Received: True"),
    ]
    assert len(lines) == len(expected)
    for line, (start, part) in zip(lines, expected, strict=True):
        assert line.startswith(start)
        assert part in line


def test_a_wrong_override_is_named_instead_of_a_line(write):
    (line,) = problems(write(MINIMAL), "adapter.rnak=4")
    assert line.startswith("`adapter.rnak=4`: adapter.rnak: no such key. Did you mean 'rank'?")
    (line,) = problems(write(MINIMAL), "rank=4")
    assert "Did you mean 'adapter.rank'?" in line
    assert problems(write(MINIMAL), "rank") == [
        "`rank`: expected key=value, such as adapter.rank=4"
    ]
    (line,) = problems(write(MINIMAL + "adapter: none\n"), "adapter.rank=4")
    assert line == "`adapter.rank=4`: adapter is 'none' here, which has no keys"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer={name: lion}", "lion needs a learning rate of its own"),
        ("epochs=0", "expected a whole number (at least 1) or null. Received: 0"),
        ("adapter=nnone", "expected a section of keys or none. Received: 'nnone'"),
        ("model.source=./nowhere/model", "no such folder or .gguf file: './nowhere/model'"),
        ("model.chat_template=chatlm", "one of chatml, gemma, llama3, phi3, plain, qwen"),
        ("model.chat_template='{% for'", "not valid Jinja"),
        ("data.train=[]", "an empty list of files"),
        ("data.train=rows/*.jsonl", "no such file: 'rows/*.jsonl'"),
        ("sequence_length=1", "expected a whole number (at least 2). Received: 1"),
        ("seed=-1", "Received: -1"),
        (
            "optimizer.learning_rate=1e-3x",
            "`optimizer.learning_rate=1e-3x`: optimizer.learning_rate: expected a number (above 0) "
            "or null. Received: '1e-3x'",
        ),
        ("data.template=2026-13-01", "`data.template=2026-13-01`: the value is not YAML: month"),
        ("optimizer.warmup=-0.5", "expected a number (at least 0, below 1) or a whole number"),
    ],
)
def test_wrong_values(write, override, message):
    (line,) = problems(write(MINIMAL), override)
    assert message in line


def test_values_that_contradict_each_other(write):
    (line,) = problems(write(MINIMAL + "epochs: 2\nsteps: 5\n"))
    assert line.startswith("recipe.yaml:5: epochs: epochs and steps (5) are both given")
    (line,) = problems(write(MINIMAL), "epochs=2", "steps=5")
    assert line.startswith("`epochs=2`: epochs: epochs and steps (5) are both given")
    (line,) = problems(write(MINIMAL + "adapter: none\n"), "model.quantize=int8")
    assert "a base held in int8 is frozen" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model: missing; expected a section of keys"),
        ("- 1\n", "recipe.yaml:1: expected keys with values. Received: [1]"),
        ("model: [1\nseed: 2\n", "recipe.yaml:2: not YAML"),
        ("seed: 1\nseed: 2\n", "recipe.yaml:2: seed: given twice, first at recipe.yaml:1"),
        ("seed: 1\nmodel:\n  source: 2026-13-01\n", "recipe.yaml:3: model.source: '2026-13-01'"),
        ("model: !!python/name:os.system\n", "not YAML: could not determine a constructor"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    assert message in problems(write(text))[0]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="cannot read this recipe: No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("seed: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_valid(path):
    # Data that has to be fetched first is replaced by bundled data.
    fetched = "databricks-dolly-15k.jsonl" in path.read_text(encoding="utf-8")
    overrides = ["data.train=tiny_gemma/train.jsonl"] if fetched else []
    load_recipe(path, overrides)
