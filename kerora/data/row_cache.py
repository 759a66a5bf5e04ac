"""Tokenised rows on disk, found again by what is in them.

The content of a row is its key; all else that decides what becomes of it names the folder, `rows/`
and a fingerprint of the encoder, in kerora's cache folder. So a file that grew, another order of
rows or another mixture find the rows that they share.

A file holds the rows of one window that were not found, as safetensors. It is moved into place
whole, and its name is a hash of its bytes: one that was damaged is noticed before a row of it is
used, and removed. Deleting the folder, or any part of it, clears the cache.
"""

import contextlib
import hashlib
import itertools
import json
import marshal
import os
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerora.cache_folder import cache_folder
from kerora.data.encoder_fingerprint import encoder_fingerprint
from kerora.data.encoding import Encoded, Encoder
from kerora.data.errors import LongRow, RowProblem
from kerora.user_warning import warn_user

# Fewer rows are tokenised about as soon as they are found.
FEWEST_ROWS = 256
_MOST_BYTES = 2 << 30
_MOST_FILES = 1024
_KEY_BYTES = 16
_ABANDONED_SECONDS = 3600

Result = Encoded | RowProblem


class RowCache:
    """Encodes rows as an `Encoder` does, those that it has seen before without tokenising them.

    A row that is too long, or no example, is found again as such. Rows that hold something else
    than text, numbers, lists and dicts are encoded each time. Threads may share a cache, and
    processes a folder.

    Args:
        encoder: Turns rows into tokens.
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._shards: list[_Shard] = []
        self._in_use: set[Path] = set()
        self._opened = False
        self._keeps = True

    def encode_many(
        self, rows: Sequence[Any], weights: Sequence[float], new: dict[bytes, Result]
    ) -> list[Any]:
        """Tokenises rows, or finds them.

        Args:
            rows: As for `Encoder.encode_many`.
            weights: The weight of each.
            new: Takes the rows that were not found, for `keep`; those in it count as found.

        Returns:
            As `Encoder.encode_many`.
        """
        self._open()
        keys = [_key(row) for row in rows]
        known = [key for key in dict.fromkeys(keys) if key is not None]
        found = {key: new[key] for key in known if key in new}
        found.update(self._find([key for key in known if key not in found]))
        missing = [number for number, key in enumerate(keys) if key not in found]
        made = self._encoder.encode_many([rows[n] for n in missing], [1.0] * len(missing))
        results: list[Any] = [found.get(key) if key is not None else None for key in keys]
        for number, result in zip(missing, made, strict=True):
            results[number] = result
            key = keys[number]
            if key is not None:
                new[key] = result
        return [_weighted(r, float(w)) for r, w in zip(results, weights, strict=True)]

    def keep(self, new: dict[bytes, Result]) -> None:
        """Writes rows for the next time, where they are worth a file and there is room."""
        if len(new) < FEWEST_ROWS or not self._keeps or self._folder is None:
            return
        try:
            self._write(self._folder, new)
        except OSError as error:
            self._keeps = False
            warn_user(
                f"Tokenised rows are not kept for the next run: {self._folder} cannot be written "
                f"({error.strerror or error})."
            )

    def _open(self) -> None:
        with self._lock:
            if self._opened:
                return
            self._opened = True
            name = encoder_fingerprint(self._encoder)
            if name is None:
                return
            self._folder = cache_folder() / "rows" / name
            for path in sorted(self._folder.glob("*.safetensors")):
                try:
                    self._shards.append(_Shard(path))
                except _UnusableFile:
                    _remove(path)

    def _find(self, keys: list[bytes]) -> dict[bytes, Result]:
        found: dict[bytes, Result] = {}
        for shard in list(self._shards):
            wanted = [key for key in keys if key not in found]
            if not wanted:
                break
            try:
                here = shard.read(wanted)
                if here:
                    self._in_use.add(shard.path)
                found.update(here)
            except _UnusableFile:
                _remove(shard.path)
                with contextlib.suppress(ValueError):  # another thread was quicker
                    self._shards.remove(shard)
        return found

    def _write(self, folder: Path, new: dict[bytes, Result]) -> None:
        data = _as_bytes(new)
        if not _make_room(folder.parent, len(data), self._in_use):
            self._keeps = False
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        # mkstemp lets no other user read it.
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.replace(partial, path)
        except BaseException:
            _remove(Path(partial))
            raise
        self._in_use.add(path)
        with contextlib.suppress(_UnusableFile):
            self._shards.append(_Shard(path))


def _as_bytes(results: dict[bytes, Result]) -> bytes:
    from safetensors.numpy import save

    nothing = Encoded(np.zeros(0, np.int32), np.zeros(0, np.float32))
    rows = [row if isinstance(row, Encoded) else nothing for row in results.values()]
    problems = {
        number: [isinstance(row, LongRow), row.reason, row.detail]
        for number, row in enumerate(results.values())
        if isinstance(row, RowProblem)
    }
    return save(
        {
            "keys": np.frombuffer(b"".join(results), np.uint8).reshape(-1, _KEY_BYTES),
            "offsets": np.cumsum([0, *(len(row.token_ids) for row in rows)], dtype=np.int64),
            "token_ids": np.concatenate([row.token_ids for row in rows]),
            "learned": np.concatenate([row.loss_weights for row in rows]).astype(np.uint8),
            "truncated": np.asarray([row.truncated for row in rows], np.uint8),
            "problems": np.frombuffer(json.dumps(problems).encode(), np.uint8),
        }
    )


class _UnusableFile(Exception):  # noqa: N818 - always caught
    """A file of rows that is damaged, or that another process has removed."""


class _Shard:
    """The rows of one file. In memory are their keys and places, 32 bytes a row."""

    def __init__(self, path: Path):
        self.path = path
        self._checked = False
        with _reading(path) as file:
            keys = file.get_tensor("keys").view(f"S{_KEY_BYTES}").ravel()
            self._offsets = file.get_tensor("offsets")
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def read(self, keys: list[bytes]) -> dict[bytes, Result]:
        """Those of the rows that it holds. Raises `_UnusableFile`."""
        wanted = np.frombuffer(b"".join(keys), self._keys.dtype)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        hits = np.flatnonzero(self._keys[places] == wanted)
        if not len(hits):
            return {}
        rows = self._order[places[hits]]
        in_file_order = np.argsort(rows)
        hits, rows = hits[in_file_order], rows[in_file_order]
        found: dict[bytes, Result] = {}
        with _reading(self.path) as file:
            self._check()
            token_ids, learned = file.get_slice("token_ids"), file.get_slice("learned")
            truncated = file.get_tensor("truncated")
            problems = json.loads(file.get_tensor("problems").tobytes())
            # Neighbours in the file are read at once.
            breaks = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            for first, last in itertools.pairwise(breaks):
                places = self._offsets[rows[first] : rows[last - 1] + 2]
                start, end = int(places[0]), int(places[-1])
                if start == end:  # problems alone; at the end of the file it can cut nothing out
                    ids, weights = np.zeros(0, np.int32), np.zeros(0, np.float32)
                else:
                    ids, weights = token_ids[start:end], learned[start:end].astype(np.float32)
                for n, (a, b) in enumerate(itertools.pairwise((places - start).tolist()), first):
                    row = Encoded(ids[a:b], weights[a:b], bool(truncated[rows[n]]))
                    problem = problems.get(str(rows[n]))
                    found[keys[hits[n]]] = row if problem is None else _problem(*problem)
        return found

    def _check(self) -> None:
        """Reads the whole file once, before anything of it is used."""
        if self._checked:
            return
        with open(self.path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.path.stem:
                raise _UnusableFile
        with contextlib.suppress(OSError):
            os.utime(self.path)  # what was used last is removed last
        self._checked = True


def _problem(long: bool, reason: str, detail: str) -> RowProblem:
    return LongRow(reason, detail) if long else RowProblem(reason, detail)


@contextlib.contextmanager
def _reading(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        raise _UnusableFile from error


def _key(row: Any) -> bytes | None:
    """Equal for equal rows alone; None of a row that is to be encoded each time."""
    if isinstance(row, RowProblem):
        return None
    try:
        # Version 2 writes equal values alike, and tells apart what JSON does not (1 and "1" as the
        # name of a field, lists and tuples). Nothing is ever read from it.
        content = marshal.dumps(row, 2)
    except ValueError:
        return None
    return hashlib.sha256(content).digest()[:_KEY_BYTES]


def _weighted(result: Any, weight: float) -> Any:
    if weight == 1.0 or not isinstance(result, Encoded):
        return result
    return Encoded(result.token_ids, result.loss_weights * np.float32(weight), result.truncated)


def _make_room(root: Path, size: int, in_use: Collection[Path]) -> bool:
    """Removes the files of the cache that were not used for the longest time.

    Returns:
        Whether there is room for another file of that size.
    """
    files = []
    for path in root.glob("*/*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total, count = sum(size for _, size, _ in files), len(files)
    for used, length, path in sorted(files):
        # Left behind by a process that was killed while it wrote.
        abandoned = path.suffix == ".partial" and time.time() - used > _ABANDONED_SECONDS
        full = total + size > _MOST_BYTES or count >= _MOST_FILES
        if abandoned or (full and path not in in_use):
            _remove(path)
            total, count = total - length, count - 1
    return total + size <= _MOST_BYTES and count < _MOST_FILES


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # where nothing else is in it
