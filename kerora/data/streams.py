"""Data that can only be read front to back, spooled to a temporary file so that it has an index."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from kerora.data.errors import DataError, RowProblem


class SpooledSource:
    """Rows in a temporary file, by index; deleted with the object."""

    def __init__(self, rows: Iterable[Any], name: str):
        self._name = name
        self._file = tempfile.TemporaryFile(prefix="kerora-")  # noqa: SIM115 - lives with self
        ends = [0]
        for row in rows:
            data = json.dumps(row, ensure_ascii=False, default=_to_json).encode("utf-8", "replace")
            self._file.write(data)
            ends.append(ends[-1] + len(data))
        self._file.flush()
        self._ends = np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        row = json.loads(os.pread(self._file.fileno(), end - start, start))
        if isinstance(row, dict) and _NOT_TEXT in row:
            raise RowProblem("wrong encoding", row[_NOT_TEXT])
        return row

    def where(self, index: int) -> str:
        return f"row {index} of {self._name}"


_NOT_TEXT = "\0not text"


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_NOT_TEXT: "bytes that are not UTF-8"}
    return str(value)


def spool(rows: Iterable[Any], name: str, plain: Callable[[Any], Any]) -> SpooledSource:
    """Writes a finite stream of rows (or of batches of rows) to a temporary file, once.

    Args:
        rows: Strings, dicts or message lists, or batches of them (an array of strings, a dict of
            arrays).
        name: What to call the source in messages.
        plain: Turns NumPy and bytes values into Python ones.
    """
    return SpooledSource((plain(row) for batch in rows for row in _unbatch(batch)), name)


def _unbatch(element: Any) -> Iterable[Any]:
    if isinstance(element, np.ndarray) and element.ndim == 1:
        return element
    if isinstance(element, tuple):
        raise DataError(
            "A data set of text yields strings, dicts or lists of messages, not tuples such as "
            f"(x, y). Name the fields instead. Received: {str(element)[:200]}"
        )
    if isinstance(element, Mapping) and element:
        columns = list(element.values())
        if all(isinstance(column, np.ndarray) and column.ndim == 1 for column in columns):
            rows = zip(*columns, strict=True)
            return [dict(zip(element, row, strict=True)) for row in rows]
    return [element]


def as_stream(data: Any) -> Iterator[Any] | None:
    """An iterator over data that has no index; None where `data` is not of that kind."""
    if hasattr(data, "as_numpy_iterator"):  # tf.data.Dataset
        if int(data.cardinality()) == -1:
            raise DataError("The tf.data.Dataset never ends: drop its `.repeat()`.")
        return data.as_numpy_iterator()
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if len(data) >= sys.maxsize:
            raise DataError(f"The {type(data).__name__} never ends: drop its `.repeat()`.")
        return None
    return iter(data) if isinstance(data, Iterable) else None
