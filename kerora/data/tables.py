"""Rows of .parquet and .arrow files by index, with one part of the file decoded in memory.

Rows that are asked for in file order decode each part once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kerora.data.errors import DataError


class _Parts:
    """Rows of a table that is stored in parts.

    Args:
        path: The file, for messages.
        sizes: Rows of each part.
        read: A part as a pyarrow table or batch.
    """

    def __init__(self, path: Path, sizes: list[int], read: Callable[[int], Any]):
        self._path = path
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._read = read
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        # One assignment, for the thread that reads ahead may be reading too.
        held, part = self._held
        if held != number:
            part = self._read(number)
            self._held = (number, part)
        first = int(self._ends[number - 1]) if number else 0
        return part.slice(index - first, 1).to_pylist()[0]

    def where(self, index: int) -> str:
        return f"{self._path}, row {index + 1}"


class ParquetFile(_Parts):
    """The rows of a .parquet file, one row group in memory."""

    def __init__(self, path: Path):
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no readable Parquet file: {error}") from error
        groups = range(file.metadata.num_row_groups)
        sizes = [file.metadata.row_group(group).num_rows for group in groups]
        super().__init__(path, sizes, file.read_row_group)


class ArrowFile(_Parts):
    """The rows of a .arrow file, in Arrow's file format or (as `datasets` writes) its stream.

    The file is mapped into memory: what is not compressed is read from the disk as it is needed.
    https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
    """

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.ipc

        file = pyarrow.memory_map(str(path))
        try:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(file)
                numbers = range(reader.num_record_batches)
                sizes = [reader.get_batch(number).num_rows for number in numbers]
                super().__init__(path, sizes, reader.get_batch)
            else:
                file.seek(0)
                batches = list(pyarrow.ipc.open_stream(file))
                super().__init__(path, [len(batch) for batch in batches], batches.__getitem__)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no readable Arrow file: {error}") from error
