"""Recipes as YAML text: read with the place of every key, and written with comments."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kerora.recipe_errors import RecipeError, expected, nested_model

KeyPath = tuple[str | int, ...]

_HEADER = """\
# A kerora recipe with every key and its default; a recipe needs just those that differ.
# Run it with `kerora train RECIPE.yaml`, changed on the way by `section.key=value`.
"""


@dataclasses.dataclass
class Document:
    """A recipe as read.

    Attributes:
        values: Its plain values.
        places: Where each key stands: `"recipe.yaml:12"`, or the override that set it.
        name: The file's name as given.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str]
    name: str

    def place(self, path: KeyPath) -> str:
        """Where a key stands, or else the nearest key above it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


class _Loader(yaml.SafeLoader):
    """YAML's safe types, with YAML 1.2's floats: PyYAML reads `2e-4` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: There is no such file, or it is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"{path}: cannot read this recipe: {reason}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from None
    document = Document({}, {(): os.fspath(path)}, os.fspath(path))
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            values = _build(node, (), loader, document)
            if not isinstance(values, dict):
                raise RecipeError(f"{path}:1: expected keys with values. Received: {values!r}")
            document.values = values
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{place}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    return document


def _build(node: yaml.Node, path: KeyPath, loader: _Loader, document: Document) -> Any:
    """The value of a node, noting the line of every key on the way."""
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            place = f"{document.name}:{key_node.start_mark.line + 1}"
            if key in values:
                first = document.places[(*path, key)]
                raise RecipeError(f"{place}: {key}: given twice, first at {first}")
            document.places[(*path, key)] = place
            values[key] = _build(value_node, (*path, key), loader, document)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), loader, document) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # of a form that YAML has a type for, such as the date 2026-13-01
        place = f"{document.name}:{node.start_mark.line + 1}: {'.'.join(map(str, path))}"
        raise RecipeError(f"{place}: {node.value!r} is no YAML value: {error}") from None


def apply_override(document: Document, override: str) -> None:
    """Change one key of a recipe: `"section.key=value"`.

    Steps take the place of the file's epochs, and the other way round.

    Raises:
        RecipeError: It has another form, or names a key inside something that has none.
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"`{override}`: expected key=value, such as adapter.rank=4")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"`{override}`: the value is not YAML: {error}") from None
    section = document.values
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            inside = ".".join(keys[:depth])
            raise RecipeError(f"`{override}`: {inside} is {section!r} here, which has no keys")
    section[keys[-1]] = value
    document.places[tuple(keys)] = f"`{override}`"
    instead_of = {"steps": "epochs", "epochs": "steps"}.get(name)
    if instead_of and value is not None and not document.place((instead_of,)).startswith("`"):
        document.values.pop(instead_of, None)


def recipe_text(recipe: type[BaseModel]) -> str:
    """YAML of every key with its default, each under a comment made from its description."""
    return _HEADER + "".join(_section_lines(recipe, ""))


def _section_lines(section: type[BaseModel], indent: str) -> list[str]:
    lines = []
    for name, field in section.model_fields.items():
        inner = nested_model(field)
        if inner is not None:
            lines += [f"\n{indent}# {_first_line(inner)}\n", f"{indent}{name}:\n"]
            lines += _section_lines(inner, indent + "  ")
            continue
        if not indent:
            lines.append("\n")
        lines += [f"{indent}# {line}\n" for line in _comment(field, 96 - len(indent))]
        lines.append(f"{indent}{name}: {_inline(_default(field))}\n")
    return lines


def _comment(field: FieldInfo, width: int) -> list[str]:
    need = " (required)" if field.is_required() else ""
    return textwrap.wrap(f"{field.description} [{expected(field)}]{need}", width)


def _default(field: FieldInfo) -> Any:
    return field.examples[0] if field.is_required() and field.examples else field.default


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]
