"""Rows of .jsonl, .json, .csv and .txt files, read one at a time by index.

Only byte offsets are held for the line-based formats (8 bytes a row), so a file of a million rows
costs a few megabytes. A file with a byte-order mark is read without it. A compressed file is
unpacked once, into a temporary file that goes with its reader.
"""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kerora.data.errors import DataError, RowProblem
from kerora.data.tables import ArrowFile, ParquetFile

_CHUNK_BYTES = 1 << 22
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_BLANK_LINE = 16

# A field of a .csv file may hold a whole document; the module's default limit is 128 KiB.
csv.field_size_limit(1 << 27)


def decode(data: bytes) -> str:
    """Decodes UTF-8, or raises the `RowProblem` "wrong encoding" with the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise RowProblem(
            "wrong encoding", f"byte 0x{byte:02x} at position {error.start} is not UTF-8"
        ) from error


def parse_json(text: str) -> Any:
    """Parses one JSON document, or raises the `RowProblem` "not JSON"."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowProblem("not JSON", f"{error}; it starts with {text[:40]!r}") from error


class LineFile:
    """The lines of a file that are not blank, by index.

    Args:
        path: The file.
        parse: Turns the text of a line into a row.
        name: What to call it in messages.
    """

    def __init__(self, path: Path, parse: Callable[[str], Any], name: Path):
        self._name = name
        self._parse = parse
        self._starts, self._numbers = _index_lines(path)
        self._file = open(path, "rb")  # noqa: SIM115 - read from for as long as the source lives

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        # pread keeps no position: the thread that reads ahead needs no lock.
        data = os.pread(self._file.fileno(), end - start, start)
        return self._parse(decode(data).rstrip())

    def where(self, index: int) -> str:
        number = index + 1 if self._numbers is None else int(self._numbers[index])
        return f"{self._name}:{number}"


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Where each line that is not blank starts, then the end; line numbers if some are blank."""
    found, position, last = [np.zeros(1, np.int64)], 0, b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            breaks = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            found.append(breaks + (position + 1))
            position += len(chunk)
            last = chunk[-1:]
        starts = np.concatenate(found)
        if last != b"\n":
            starts = np.append(starts, position)
        keep = np.ones(len(starts) - 1, bool)
        for line in np.flatnonzero(np.diff(starts) <= _LONGEST_BLANK_LINE):
            file.seek(starts[line])
            size = int(starts[line + 1] - starts[line])
            keep[line] = bool(file.read(size).removeprefix(_BYTE_ORDER_MARK).strip())
        file.seek(0)
        if file.read(3) == _BYTE_ORDER_MARK:
            starts[0] = 3
    if keep.all():
        return starts, None
    return np.append(starts[:-1][keep], starts[-1]), np.flatnonzero(keep).astype(np.int32) + 1


class CsvFile:
    """The records of a .csv file with a header line, as dicts, by index.

    Fields are separated by commas, or by semicolons or tabs where the header has those alone.
    """

    def __init__(self, path: Path, name: Path):
        self._name = name
        starts, numbers = [], []
        with open(path, "rb") as file:
            self._separator = _separator(file.readline())
            file.seek(0)
            lines = _CountedLines(file)
            reader = csv.reader(lines, delimiter=self._separator)
            try:
                header = next(reader, None)
                while header is not None:
                    start, number = lines.position, lines.number
                    record = next(reader, None)
                    if record is None:
                        break
                    if record:
                        starts.append(start)
                        numbers.append(number + 1)
            except csv.Error as error:
                raise DataError(
                    f"{name}:{lines.number} cannot be read as CSV: {error}. Lines end in \\n or "
                    "\\r\\n, and a field with \\r in it stands in quotes: write the file so, or as "
                    ".jsonl."
                ) from error
            end = lines.position
        if header is None:
            raise DataError(f"{name} is empty: a .csv file starts with a line of field names.")
        self._header = [name.strip() for name in header]
        self._starts = np.asarray([*starts, end], np.int64)
        self._numbers = np.asarray(numbers, np.int32)
        self._file = open(path, "rb")  # noqa: SIM115 - read from for as long as the source lives

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, str]:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        text = decode(os.pread(self._file.fileno(), end - start, start))
        # In lines as the index counts them: other characters that break lines are text.
        record = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._separator))
        if len(record) != len(self._header):
            raise RowProblem(
                "missing field" if len(record) < len(self._header) else "too many fields",
                f"{len(record)} values for the {len(self._header)} fields {self._header}",
            )
        return dict(zip(self._header, record, strict=True))

    def where(self, index: int) -> str:
        return f"{self._name}:{self._numbers[index]}"


def _separator(header: bytes) -> str:
    return next((char for char in ",;\t" if char.encode() in header), ",")


class _CountedLines:
    """The decoded lines of a binary file, with the byte and line reached so far."""

    def __init__(self, file: Any):
        self._file = file
        self.position = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        text = line if self.position else line.removeprefix(_BYTE_ORDER_MARK)
        self.position += len(line)
        self.number += 1
        # Commas, quotes and line ends are ASCII: records are found whatever the encoding is, and
        # a wrong one is reported when the record itself is read.
        return text.decode("utf-8", errors="replace")


class JsonFile:
    """The rows of a .json file: a list, an object of columns, or one object with one list."""

    def __init__(self, path: Path, name: Path):
        self._name = name
        try:
            value = parse_json(decode(path.read_bytes().removeprefix(_BYTE_ORDER_MARK)))
        except RowProblem as problem:
            advice = "A file of one JSON value per line is named .jsonl."
            raise DataError(f"{problem.at(str(name))}. {advice}") from None
        if isinstance(value, dict):
            value = _rows_of_object(name, value)
        if not isinstance(value, list):
            raise DataError(
                f"{name} should hold a list of rows or an object of columns. "
                f"Received: {type(value).__name__}"
            )
        self._rows = value

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self._name}, row {index + 1}"


def _rows_of_object(name: Path, value: dict[str, Any]) -> list[Any]:
    lists = {key: column for key, column in value.items() if isinstance(column, list)}
    if len(lists) == 1 and all(isinstance(row, dict) for row in next(iter(lists.values()))):
        return next(iter(lists.values()))
    if len(lists) != len(value) or len({len(column) for column in lists.values()}) != 1:
        raise DataError(
            f"{name} holds an object that is neither columns of equal length nor one list of "
            f"rows. Received the keys {sorted(value)[:10]}"
        )
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


_TEXT_READERS: dict[str, Callable[[Path, Path], Any]] = {
    ".jsonl": lambda path, name: LineFile(path, parse_json, name),
    ".json": JsonFile,
    ".csv": CsvFile,
    ".txt": lambda path, name: LineFile(path, str, name),
}
_TABLE_READERS: dict[str, Callable[[Path], Any]] = {".parquet": ParquetFile, ".arrow": ArrowFile}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

FILE_SUFFIXES = (
    *_TEXT_READERS,
    *_TABLE_READERS,
    *(text + packed for text in _TEXT_READERS for packed in _COMPRESSIONS),
)


def open_file(path: Path) -> Any:
    """Opens one data file by its suffix.

    `.txt` gives one row per line, `.jsonl` one JSON value per line; `.csv` starts with a line of
    field names. Each of them and `.json` may be compressed: `.jsonl.gz`, `.jsonl.zst`.

    Raises:
        DataError: The suffix is unknown, or the file is not what it says.
    """
    compression = _COMPRESSIONS.get(path.suffix.lower())
    suffix = Path(path.stem if compression else path).suffix.lower()
    try:
        if suffix in _TABLE_READERS and not compression:
            return _TABLE_READERS[suffix](path)
        if suffix in _TEXT_READERS:
            read = _TEXT_READERS[suffix]
            return _unpacked(path, compression, read) if compression else read(path, path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    raise DataError(
        f"Cannot read {path}: data files end in {', '.join([*_TEXT_READERS, *_TABLE_READERS])}; "
        f"the first {len(_TEXT_READERS)} may be compressed (.jsonl.gz, .jsonl.zst). "
        f"Received the suffix {path.suffix!r}."
    )


def _unpacked(path: Path, compression: str, read: Callable[[Path, Path], Any]) -> Any:
    """Opens a compressed file; readers hold what they opened, so that it can be deleted at once."""
    import pyarrow

    with tempfile.NamedTemporaryFile(prefix="kerora-") as unpacked:
        try:
            with pyarrow.input_stream(str(path), compression=compression) as stream:
                shutil.copyfileobj(stream, unpacked, _CHUNK_BYTES)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} cannot be unpacked as {compression}: {error}") from error
        unpacked.flush()
        return read(Path(unpacked.name), path)
