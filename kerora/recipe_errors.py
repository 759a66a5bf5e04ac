"""What is wrong with a recipe, in words: the key, the line, what was expected, the nearest name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from kerora.recipe_yaml import Document, KeyPath

_TYPE_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class RecipeError(ValueError):
    """A recipe that cannot be run; the message has one line per problem."""


def as_recipe_error(error: ValueError, recipe: type[BaseModel], document: Document) -> RecipeError:
    """The problems that pydantic found, with their places in the file."""
    if not isinstance(error, ValidationError):
        return RecipeError(f"{document.name}: {error}")
    found: dict[KeyPath, str] = {}
    for problem in error.errors():
        path, field, section = _locate(problem["loc"], recipe)
        if problem["type"] == "extra_forbidden":
            found[path] = _unknown_key(str(path[-1]), section, recipe)
        elif problem["type"] == "missing":
            found[path] = f"missing; expected {expected(field)}"
        elif problem["type"] == "value_error":
            found[path] = str(problem["ctx"]["error"])
        else:
            found.setdefault(path, f"expected {expected(field)}. Received: {problem['input']!r}")
    # Of a section that may also be something else, only what is wrong inside is of interest.
    inner = [path for path in found if not any(p != path and p[: len(path)] == path for p in found)]
    order = list(document.places.values())
    inner.sort(key=lambda path: order.index(document.place(path)))
    lines = [f"{document.place(path)}: {_dotted(path)}: {found[path]}" for path in inner]
    return RecipeError("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def expected(field: FieldInfo | None) -> str:
    """What a field takes, in words: `"a whole number (at least 1) or null"`."""
    if field is None:
        return "a section of keys"
    return _describe(field.annotation, field.metadata)


def nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [part for part in inner[1:] if not isinstance(part, FieldInfo)]
        nested = [m for part in inner[1:] if isinstance(part, FieldInfo) for m in part.metadata]
        return _describe(inner[0], [*constraints, *nested])
    if origin in (Union, types.UnionType):
        bounds = _bounds(metadata)
        parts = [_describe(part) + (bounds if part in (int, float) else "") for part in inner]
        return " or ".join(parts)
    if origin is Literal:
        return " or ".join(", ".join(map(str, inner)).rsplit(", ", 1))
    if origin is dict:
        return "a row of fields" if inner[1] is str else f"names with {_describe(inner[1])} each"
    if origin is list:
        return f"a list of {_describe(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section of keys"
    return _TYPE_NAMES.get(annotation, str(annotation)) + _bounds(metadata)


def _bounds(metadata: Iterable[Any]) -> str:
    bounds = [
        f"{words} {getattr(part, name)}"
        for part in metadata
        for name, words in _BOUNDS.items()
        if hasattr(part, name)
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _locate(
    location: tuple[int | str, ...], recipe: type[BaseModel]
) -> tuple[KeyPath, FieldInfo | None, type[BaseModel]]:
    """The path of keys, the last field on it, and the section that holds that field.

    Pydantic's locations also name the members of unions and the places in lists.
    """
    path: list[str] = []
    field: FieldInfo | None = None
    section, inside = recipe, True
    for part in location:
        if inside and part in section.model_fields:
            path.append(str(part))
            field = section.model_fields[str(part)]
            inner = nested_model(field)
            section, inside = (inner, True) if inner else (section, False)
        elif inside and part != section.__name__ and not str(part).startswith("literal["):
            path.append(str(part))
            break
    return tuple(path), field, section


def _unknown_key(name: str, section: type[BaseModel], recipe: type[BaseModel]) -> str:
    keys = list(section.model_fields)
    hint = nearest(name, keys) or _elsewhere(name, recipe)
    return f"no such key.{hint} Keys here: {', '.join(keys)}"


def _elsewhere(name: str, recipe: type[BaseModel]) -> str:
    """A hint at the section that has a key of this name."""
    for key, field in recipe.model_fields.items():
        section = nested_model(field)
        if section is not None and name in section.model_fields:
            return f" Did you mean '{key}.{name}'?"
    return ""


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the recipe"
