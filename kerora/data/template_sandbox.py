"""Jinja's sandbox, with an end: a template from a stranger cannot run or grow for ever.

Jinja's own sandbox keeps a template from Python's insides, and lets it loop within loops and double
a text forty times. Here each rendering has so many rounds of loops and calls, so many characters of
text, and so many seconds; and no single operation makes a text longer than that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jinja2
import jinja2.filters
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

MOST_ROUNDS = 300_000
MOST_CHARACTERS = 50_000_000
MOST_SECONDS = 20.0
_LARGEST_NUMBER = 2**63
# What pads or repeats by a number that it is given, and has no place in a chat.
_GROWING_METHODS = frozenset(
    ("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "to_bytes")
)
_GROWING_FILTERS = ("center", "indent", "wordwrap", "batch", "slice", "tojson")
_WIDE = re.compile(r"\d{5}|\*")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
_left: ContextVar[_Left] = ContextVar("left")


@dataclasses.dataclass
class _Left:
    characters: int
    rounds: int
    until: float


class TemplateLimitError(ValueError):
    """A template that asks for more than a conversation needs."""


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An immutable sandbox whose templates end."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_checked, **options)
        del self.globals["lipsum"]
        own = {"format": _format_filter, "replace": _replace, "join": _join_filter}
        self.filters = {name: self._bounded(name, f) for name, f in (self.filters | own).items()}
        self.filters |= {"_rounds": _rounds, "_text": _checked}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Make a filter known to templates, bounded as theirs are."""
        self.filters[name] = self._bounded(name, function)

    @staticmethod
    def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **named: Any) -> Any:
            if name in _GROWING_FILTERS:
                numbers = [n for n in (*args, *named.values()) if isinstance(n, int)]
                longest = max(map(_length, args), default=1)
                _size(max(numbers, default=0) * (100 if name == "tojson" else longest))
            return _checked(function(*args, **named))

        return bounded

    def compiled(self, source: str) -> jinja2.Template:
        """The template of a text, whose loops and joined texts are counted.

        Raises:
            jinja2.TemplateError: If it is not valid.
        """
        tree = self.parse(source)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = _filtered(loop.iter, "_rounds")
        for output in list(tree.find_all(jinja2.nodes.Output)):
            output.nodes = [_counted_data(part) for part in output.nodes]
        for joined in list(tree.find_all(jinja2.nodes.Concat)):
            joined.nodes = [_filtered(part, "_text") for part in joined.nodes]
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _GROWING_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None
        text = str(value.__self__)
        if _WIDE.search(text) or _NESTED_FIELD.search(text):
            raise TemplateLimitError(f"a format as wide as {text[:80]!r} is not made")

        def bounded(*args: Any, **named: Any) -> str:
            longest = max(map(_length, (*args, *named.values())), default=1)
            _size(len(text) + text.count("{") * longest)
            return made(*args, **named)

        return bounded

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(0, 1)
        if isinstance(obj, jinja2.runtime.LoopContext):
            args = tuple(map(_rounds, args))  # a recursive loop
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return _join(owner, *args)
        return _checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**":
            if not numbers or abs(right) > 64 or abs(left) > 2**32:
                raise TemplateLimitError(f"{str(left)[:20]} ** {str(right)[:20]} is not computed")
        elif operator == "%" and isinstance(left, str):
            return _format(left, right)
        elif operator == "*" and not numbers:
            times, text = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int):
                _size(_length(text) * max(0, times))
        elif operator == "+" and not numbers:
            _size(_length(left) + _length(right))
        return _checked(super().call_binop(context, operator, left, right))


@contextlib.contextmanager
def one_rendering() -> Iterator[None]:
    """The context of one rendering: what it may spend begins anew.

    Raises:
        TemplateLimitError: From within, when it is spent.
    """
    token = _left.set(_Left(MOST_CHARACTERS, MOST_ROUNDS, time.monotonic() + MOST_SECONDS))
    try:
        yield
    finally:
        _left.reset(token)


def _filtered(node: Any, name: str) -> Any:
    made = jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.environment = node.environment
    return made


def _counted_data(node: Any) -> Any:
    if not isinstance(node, jinja2.nodes.TemplateData):
        return node
    constant = jinja2.nodes.Const(node.data, lineno=node.lineno)
    constant.environment = node.environment
    return _filtered(constant, "_text")


def _spend(characters: int, rounds: int) -> None:
    left = _left.get()
    left.characters -= characters
    left.rounds -= rounds
    if left.rounds < 0:
        raise TemplateLimitError(f"it takes more than {MOST_ROUNDS} rounds of loops and calls")
    if time.monotonic() > left.until:
        raise TemplateLimitError(f"it takes longer than {MOST_SECONDS:g} seconds")
    _size(MOST_CHARACTERS - left.characters)


def _size(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise TemplateLimitError(f"it makes more than {MOST_CHARACTERS} characters of text")


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _rounds(values: Iterable[Any]) -> Any:
    # Jinja asks the iterable itself for its length, so a list stays one.
    if hasattr(values, "__len__"):
        _spend(0, 1 + _length(values))
        return values
    return _counted(values)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(0, 1)
        yield value


def _checked(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _spend(len(value), 0)
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise TemplateLimitError("a number of more than 64 bits is not computed")
    return value


def _format(text: str, values: Any) -> str:
    if _WIDE.search(text):
        raise TemplateLimitError(f"a format as wide as {text[:80]!r} is not made")
    parts = values.values() if isinstance(values, dict) else values
    longest = max(map(_length, parts), default=1) if isinstance(parts, Iterable) else 1
    _size(len(text) + text.count("%") * longest)
    return _checked(text % values)


def _format_filter(text: Any, *values: Any, **named: Any) -> str:
    return _format(str(text), named or values)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    times = len(text) + 1 if not old else text.count(old)
    _size(len(text) + times * len(new))
    return _checked(text.replace(old, new, -1 if count is None else count))


def _join(separator: str, values: Iterable[Any]) -> str:
    parts = list(values)
    _size(len(separator) * len(parts) + sum(map(_length, parts)))
    return _checked(separator.join(map(str, parts)))


@jinja2.pass_environment
def _join_filter(
    environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return _join(str(d), value)
