"""The data in windows: some thousand rows at a time are tokenised, packed and held in memory.

A thread prepares the next window while the batches of one are trained on, so that memory is
bounded by a few windows and the device does not wait.
"""

import atexit
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kerora.data.encoding import Encoded, Encoder
from kerora.data.errors import DataError, LongRow, RowProblem
from kerora.data.packing import one_per_row, pack
from kerora.data.report import WindowCounts
from kerora.data.row_cache import Result, RowCache
from kerora.data.sources import Source

_MOST_ROWS = 16_384
_MOST_TOKENS = 1 << 24
_ROWS_AT_ONCE = 512
_CACHE_BYTES = 1 << 26
_LONG_ADVICE = "raise sequence_length, or set on_long_row to 'truncate' or 'skip'"
_ROW_ADVICE = "mend or remove the row, or set on_bad_row to 'skip' to count and drop such rows"
_FIELDS_ADVICE = (
    "rename these fields, which all rows have, or give a template that names them; of a .csv file "
    "line 1 is read as their names"
)

_exiting = threading.Event()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _stop_threads() -> None:
    # A daemon thread that Python ends inside a tokenizer's C++ code aborts the process.
    _exiting.set()
    for thread in list(_threads):
        thread.join()


@dataclass(frozen=True)
class Window:
    """Tokenised examples and the rows that they are packed in; see `packing.assemble`."""

    token_ids: np.ndarray
    loss_weights: np.ndarray
    offsets: np.ndarray
    rows: list[np.ndarray]
    counts: WindowCounts

    @property
    def nbytes(self) -> int:
        return self.token_ids.nbytes + self.loss_weights.nbytes + self.offsets.nbytes


def split_rows(count: int, sequence_length: int, seed: int | None) -> list[np.ndarray]:
    """The row indices of each window, evenly sized.

    Args:
        count: Rows in the data.
        sequence_length: Bounds the rows of a window, so that long examples take no more memory.
        seed: Draws the rows of a window from all over the data; None keeps them in order.

    Returns:
        int32 or int64 arrays, each ascending, so that files are read front to back.
    """
    size = min(_MOST_ROWS, max(256, _MOST_TOKENS // sequence_length))
    kind = np.int32 if count < 2**31 else np.int64
    order = np.arange(count, dtype=kind)
    windows = -(-count // size)
    if seed is not None and windows > 1:
        order = np.random.default_rng(seed).permutation(order)
    return [np.sort(part) for part in np.array_split(order, windows)]


@dataclass(frozen=True)
class WindowReader:
    """Reads, tokenises and packs the rows of a window.

    Args:
        source: The rows.
        encoder: Turns them into tokens.
        row_weights: float `(rows,)`, or None for equal weights.
        token_weights: Factors for the weight of the labels, by token id; or None.
        packing: Whether several examples share a row.
        on_bad_row: `"stop"` raises at the first bad row, `"skip"` counts it.
        cache: Keeps rows that were tokenised; None tokenises them each time.
    """

    source: Source
    encoder: Encoder
    row_weights: np.ndarray | None
    token_weights: dict[int, float] | None
    packing: bool
    on_bad_row: Literal["stop", "skip"]
    cache: RowCache | None = None

    def read(self, indices: np.ndarray) -> Window:
        encoded: list[Encoded] = []
        new: dict[bytes, Result] = {}
        skipped: dict[str, int] = {}
        shown: list[str] = []
        for start in range(0, len(indices), _ROWS_AT_ONCE):
            if _exiting.is_set():
                raise DataError("The process is ending.")
            part = indices[start : start + _ROWS_AT_ONCE].tolist()
            rows = [self._row(index) for index in part]
            weights = [self._weight(index) for index in part]
            for index, result in zip(part, self._encode(rows, weights, new), strict=True):
                if isinstance(result, Encoded):
                    encoded.append(result)
                    continue
                self._refuse(result, index)
                skipped[result.reason] = skipped.get(result.reason, 0) + 1
                if len(shown) < 10:
                    shown.append(str(result.at(self.source.where(index))))
        if self.cache is not None:
            self.cache.keep(new)
        return self._window(encoded, len(indices), skipped, tuple(shown))

    def _encode(self, rows: list[Any], weights: list[float], new: dict[bytes, Result]) -> list[Any]:
        if self.cache is None:
            return self.encoder.encode_many(rows, weights)
        return self.cache.encode_many(rows, weights, new)

    def _row(self, index: int) -> Any:
        try:
            return self.source[index]
        except RowProblem as problem:
            return problem

    def _weight(self, index: int) -> float:
        return 1.0 if self.row_weights is None else float(self.row_weights[index])

    def _refuse(self, problem: RowProblem, index: int) -> None:
        """Raises where the policy for this problem is to stop."""
        long = isinstance(problem, LongRow)
        if (self.encoder.on_long_row if long else self.on_bad_row) == "stop":
            advice = _LONG_ADVICE if long else _ROW_ADVICE
            if self._concerns_all_rows(problem, index):
                advice = _FIELDS_ADVICE
            raise DataError(f"{problem.at(self.source.where(index))}. What to do: {advice}.")

    def _concerns_all_rows(self, problem: RowProblem, index: int) -> bool:
        """Whether no row could be used for its fields: the first and the last have the same."""
        has_layout = self.encoder.template not in (None, "chat")
        if problem.reason != "unknown fields" and not (
            has_layout and problem.reason == "missing field"
        ):
            return False
        rows = [self._row(number) for number in (index, 0, len(self.source) - 1)]
        return all(isinstance(row, Mapping) and row.keys() == rows[0].keys() for row in rows)

    def _window(
        self, encoded: list[Encoded], rows: int, skipped: dict[str, int], shown: tuple[str, ...]
    ) -> Window:
        lengths = np.asarray([len(example.token_ids) for example in encoded], np.int64)
        tokens = np.concatenate([np.zeros(0, np.int32), *(e.token_ids for e in encoded)])
        weights = np.concatenate([np.zeros(0, np.float32), *(e.loss_weights for e in encoded)])
        if self.token_weights is not None:
            for token, factor in self.token_weights.items():
                weights[tokens == token] *= np.float32(factor)
        length = self.encoder.sequence_length
        packed = pack(lengths, length) if self.packing else one_per_row(len(lengths))
        counts = WindowCounts(
            rows=rows,
            examples=len(encoded),
            truncated=sum(example.truncated for example in encoded),
            tokens=len(tokens),
            supervised_tokens=int(np.count_nonzero(weights)),
            packed_rows=len(packed),
            skipped=skipped,
            skipped_examples=shown,
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Window(tokens, weights, offsets, packed, counts)


class WindowLoader:
    """Windows by number, the next one prepared in a thread; small data stays in memory.

    Args:
        read: Makes the window of a number.
        count: How many windows there are.
    """

    def __init__(self, read: Callable[[int], Window], count: int):
        self._read = read
        self._count = count
        self._kept: dict[int, Window] = {}
        self._kept_bytes = 0
        self._pending: dict[int, Future[Window]] = {}
        self._lock = threading.Lock()
        self.counts: dict[int, WindowCounts] = {}

    def get(self, number: int) -> Window:
        """The window, once it is ready; the one after it is started."""
        with self._lock:
            window = self._kept.get(number)
            future = self._start(number) if window is None else None
        if future is not None:
            window = future.result()
        assert window is not None
        with self._lock:
            # Windows that are neither this one nor the next are left over from other iterators.
            following = (number + 1) % self._count
            self._pending = {n: f for n, f in self._pending.items() if n in (number, following)}
            if following not in self._kept:
                self._start(following)
        return window

    def _start(self, number: int) -> Future[Window]:
        future = self._pending.get(number)
        if future is None:
            future = self._pending[number] = Future()
            # The end of the process waits for other threads before it can tell them to stop.
            work = threading.Thread(target=self._work, args=(number, future), daemon=True)
            _threads.add(work)
            work.start()
        return future

    def _work(self, number: int, future: Future[Window]) -> None:
        try:
            window = self._read(number)
        except BaseException as error:
            future.set_exception(error)
            return
        with self._lock:
            self.counts[number] = window.counts
            if self._kept_bytes + window.nbytes <= _CACHE_BYTES and number not in self._kept:
                self._kept[number] = window
                self._kept_bytes += window.nbytes
        future.set_result(window)
