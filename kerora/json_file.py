"""Reading a JSON file that a stranger may have written.

What is too large, no file, nested too deep, or says one thing twice is an error of the caller's
kind, which names the file; nothing larger than the limit is ever read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20
_LONGEST_SHOWN = 200


def read_json_object(
    path: str | os.PathLike[str], error: type[ValueError], *, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: The file.
        error: What is raised about the file.
        most_bytes: The largest file that is read.

    Raises:
        ValueError: An `error`: if there is no such file, it is larger, no JSON, or holds something
            else than an object.

    Example:
    ```python
    config = read_json_object("model/config.json", ModelSourceError)
    ```
    """
    return parse_json_object(read_text(path, error, most_bytes=most_bytes), str(path), error)


def read_text(
    path: str | os.PathLike[str], error: type[ValueError], *, most_bytes: int = MOST_BYTES
) -> str:
    """The UTF-8 text of a file.

    Raises:
        ValueError: An `error`: if there is no such file, it is larger, or no such text.
    """
    file = Path(path)
    try:
        # A pipe or a device would be waited for, or never end.
        if not file.is_file():
            raise error(f"{file} is no file.")
        size = file.stat().st_size
        if size > most_bytes:
            raise error(f"{file} is too large: {size} bytes, and at most {most_bytes} are read.")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{file} cannot be read: {problem}") from problem


def parse_json_object(text: str, name: str, error: type[ValueError]) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: The text.
        name: What an error calls it.
        error: What is raised about it.

    Raises:
        ValueError: An `error`: as `read_json_object`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise error(f"{name} is not valid JSON that is read here: nested too deep.") from None
    except ValueError as problem:
        raise error(f"{name} is not valid JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise error(f"{name} must hold a JSON object. Received: {type(value).__name__}")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    return found


def shown(value: object) -> str:
    """A value for an error's message, cut short."""
    # Decimal digits of a huge number would take minutes, and Python refuses more than 4300.
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    try:
        return repr(value)[:_LONGEST_SHOWN]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
