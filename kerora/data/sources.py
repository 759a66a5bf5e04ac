"""From whatever people have to rows that can be read by index, each knowing where it came from."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kerora.data.errors import DataError
from kerora.data.files import FILE_SUFFIXES, open_file
from kerora.data.mixtures import MixedSource
from kerora.data.streams import as_stream, spool


class Source(Protocol):
    """Rows by index. A row is a string, a dict, or a list of chat messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """One row. Raises `RowProblem` where it cannot be read."""

    def where(self, index: int) -> str:
        """The place of a row, for messages: a file and line where there is one."""


class SequenceSource:
    """Rows of anything with a length and an index: a list, a Hugging Face or Grain data set."""

    def __init__(self, rows: Any, name: str):
        self._rows = rows
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return plain(self._rows[int(index)])

    def where(self, index: int) -> str:
        return f"row {index} of {self._name}"


class ColumnSource:
    """Rows of a dict of equally long columns."""

    def __init__(self, columns: Mapping[str, Any]):
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(f"Columns differ in length. Received: {sizes}")
        self._columns = {name: by_position(column) for name, column in columns.items()}
        self._length = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: plain(column[index]) for name, column in self._columns.items()}

    def where(self, index: int) -> str:
        return f"row {index} of the columns {list(self._columns)}"


class ConcatenatedSource:
    """The rows of several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, index: int) -> Any:
        source, local = self._locate(index)
        return source[local]

    def where(self, index: int) -> str:
        source, local = self._locate(index)
        return source.where(local)


def by_position(column: Any) -> Any:
    """Values found by their number: a list of a pandas Series, which goes by its labels, and they
    are no numbers in order where a table was shuffled or filtered; others as they are."""
    return list(column) if type(column).__name__ == "Series" else column


def plain(value: Any) -> Any:
    """NumPy strings, bytes and arrays of them as Python values; other values unchanged."""
    if isinstance(value, bytes):
        # Bytes that are not UTF-8 are left as they are; the row is refused when it is understood.
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def open_source(data: Any) -> Source:
    """Opens training data of any supported kind.

    Args:
        data: A list of strings, of dicts or of conversations (each a list of
            `{"role", "content"}`); one dict of columns; a path or glob (or a list of them) to
            `.jsonl`, `.json`, `.csv` or `.txt` files (as they are, or with `.gz` or `.zst` after
            it), `.parquet` or `.arrow` files; `"tfds:NAME/SPLIT"`; a dict of such names with the
            weight of each, or what `mix` gives; a Hugging Face `Dataset`, `DatasetDict` (its
            `"train"`) or `IterableDataset`; a pandas `DataFrame` or `Series`; a `tf.data.Dataset`,
            Grain data set, or any finite iterable of strings or dicts. What has no index is written
            to a temporary file once.

    Raises:
        DataError: The data is of no known kind, is empty, or names no file.

    Example:

    ```python
    source = open_source("dolly/*.jsonl")
    source[0]        # {"instruction": ..., "response": ...}
    source.where(0)  # "dolly/a.jsonl:1"
    ```
    """
    source = _open(data)
    if not len(source):
        raise DataError(f"There are no rows in the data. Received: {_describe(data)}")
    return source


def mix(sources: Sequence[Any], weights: Sequence[float]) -> MixedSource:
    """Mixes data sets by weight; `{name: weight}` does so for files and other names.

    Args:
        sources: Each of a kind that `open_source` reads.
        weights: The share of each in the rows of an epoch, relative to the others; see
            `MixedSource`.

    Raises:
        DataError: A source cannot be read, or the weights are not one positive number per source.

    Example:

    ```python
    model.fit(kerora.data.mix([dataset, "mine.jsonl"], weights=[3, 1]))
    model.fit({"dolly.jsonl": 3, "mine.jsonl": 1})
    ```
    """
    return MixedSource([open_source(source) for source in sources], weights)


def is_mixture(data: Any) -> bool:
    """Whether data is a mixture of named sources: a dict of names and their weights."""
    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(isinstance(name, str) for name in data)
        and all(type(weight) in (int, float) for weight in data.values())
    )


def _open(data: Any) -> Source:
    if isinstance(data, MixedSource):
        return data
    if is_mixture(data):
        return mix(list(data), list(data.values()))
    if isinstance(data, str | os.PathLike):
        return _open_name(data)
    if isinstance(data, Mapping):
        return _open_mapping(data)
    if isinstance(data, list | tuple):
        return _open_list(data)
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS" and data.ndim == 1:
        return SequenceSource(data, "the array")
    if type(data).__name__ == "DataFrame" and hasattr(data, "columns"):
        return ColumnSource({str(name): data[name].tolist() for name in data.columns})
    if type(data).__name__ == "Series":
        return SequenceSource(by_position(data), "the Series")
    stream = as_stream(data)
    if stream is not None:
        return spool(stream, type(data).__name__, plain)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return SequenceSource(data, f"the {type(data).__name__}")
    raise DataError(
        "Cannot read training data of this type: give strings, dicts, chat messages, a path, "
        f"'tfds:NAME/SPLIT', or a data set. Received: {_describe(data)}"
    )


def _open_mapping(data: Mapping[str, Any]) -> Source:
    if not data:
        raise DataError("The dict of columns is empty.")
    if "train" in data and type(data).__name__.endswith("DatasetDict"):
        return _open(data["train"])
    if type(data).__name__.endswith("DatasetDict"):
        raise DataError(f"Pick one split of the data set. Received the splits {sorted(data)}")
    if all(isinstance(column, str) for column in data.values()):
        return SequenceSource([dict(data)], "the dict")
    if any(isinstance(column, str) or not hasattr(column, "__len__") for column in data.values()):
        raise DataError(
            "A dict of data holds one list per field, all equally long. "
            f"Received: {_describe(data)}"
        )
    return ColumnSource(data)


def _open_list(data: Sequence[Any]) -> Source:
    if data and all(isinstance(entry, os.PathLike) for entry in data):
        return _concatenate([_open_name(entry) for entry in data])
    if data and all(isinstance(entry, str) and _names_files(entry) for entry in data):
        return _concatenate([_open_name(entry) for entry in data])
    if data and all(isinstance(entry, Mapping) and "role" in entry for entry in data):
        return SequenceSource([list(data)], "the list")  # one conversation, not many rows
    return SequenceSource(data, "the list")


def _names_files(text: str) -> bool:
    if text.startswith("tfds:"):
        return True
    return len(text) < 4096 and text.lower().endswith(FILE_SUFFIXES) and bool(_match(text))


def _match(name: str) -> list[Path]:
    if os.path.exists(name):
        return [Path(name)]
    return [Path(path) for path in sorted(glob.glob(name, recursive=True))]


def _open_name(name: str | os.PathLike) -> Source:
    text = os.path.expanduser(os.fspath(name))
    if text.startswith("tfds:"):
        return _open_tfds(text.removeprefix("tfds:"))
    paths = _match(text) if len(text) < 4096 and "\0" not in text else []
    if not paths:
        raise DataError(
            f"No data found. Tried {text[:200]!r} as a file, as a glob pattern (from "
            f"{os.getcwd()}), and as 'tfds:NAME/SPLIT'. For a single text, pass a list: [text]."
        )
    if any(path.is_dir() for path in paths):
        folder = next(path for path in paths if path.is_dir())
        raise DataError(f"{folder} is a folder: name its files, such as '{folder}/*.jsonl'.")
    return _concatenate([open_file(path) for path in paths])


def _concatenate(sources: list[Source]) -> Source:
    return sources[0] if len(sources) == 1 else ConcatenatedSource(sources)


def _open_tfds(name: str) -> Source:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError("'tfds:' needs the package tensorflow-datasets.") from error
    dataset, _, split = name.rpartition("/")
    if not dataset or not split:
        raise DataError(f"Expected 'tfds:NAME/SPLIT', such as 'tfds:gsm8k/train', not {name!r}.")
    try:
        return SequenceSource(tfds.data_source(dataset, split=split), f"tfds:{name}")
    except Exception as error:  # tfds raises many types for an unknown name, split or format
        stream = _prepared_tfds(tfds, dataset, split)
        if stream is None:
            # Its own message goes on to list every data set that there is.
            reason = str(error).partition("\n")[0]
            raise DataError(f"Cannot open 'tfds:{name}': {reason}") from error
    return spool(stream, f"tfds:{name}", plain)


def _prepared_tfds(tfds: Any, dataset: str, split: str) -> Any:
    """A set on disk in a format without an index, such as TFRecord; None if there is none."""
    try:
        return iter(tfds.as_numpy(tfds.load(dataset, split=split, download=False)))
    except Exception:
        return None


def _describe(data: Any) -> str:
    text = repr(data) if isinstance(data, str | Mapping | list | tuple) else ""
    return f"{type(data).__name__} {text[:200]}".strip()
