"""Several data sets as one, each with its share of the rows."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kerora.data.errors import DataError


class _Source(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str: ...


class MixedSource:
    """The rows of several sources, in shares that their weights say.

    An epoch goes through every row of every source at least once; a source whose share is larger
    than its rows has them repeated, evenly. Which row comes where depends on the numbers of rows
    and on the weights alone, so that a run can be continued.

    Args:
        sources: Rows by index.
        weights: The relative shares, one per source, above 0.

    Raises:
        DataError: The weights are not one positive number per source, or a source would be
            repeated more than ten thousand times.
    """

    def __init__(self, sources: Sequence[_Source], weights: Sequence[float]):
        try:
            shares = np.asarray(weights, np.float64)
        except (TypeError, ValueError):
            shares = np.zeros(0)
        if shares.shape != (len(sources),) or not np.all(np.isfinite(shares) & (shares > 0)):
            raise DataError(
                f"A mixture has one weight above 0 for each of its {len(sources)} sources. "
                f"Received: {list(weights)}"
            )
        self._sources = list(sources)
        self._weights = [float(weight) for weight in weights]
        sizes = np.asarray([len(source) for source in sources], np.int64)
        passes = shares / sizes
        passes /= passes.min()
        if passes.max() > 10_000:
            raise DataError(
                f"The weights {self._weights} of sources of {sizes.tolist()} rows repeat one of "
                f"them {passes.max():,.0f} times for each pass over another: give it less weight."
            )
        counts = np.round(sizes * passes).astype(np.int64)
        numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        rows = [np.arange(n) * size // n for n, size in zip(counts, sizes, strict=True)]
        # In order too the sources alternate in proportion.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        order = np.argsort(places, kind="stable")
        self._numbers, self._rows = numbers[order], np.concatenate(rows)[order]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._sources[self._numbers[index]][int(self._rows[index])]

    def where(self, index: int) -> str:
        return self._sources[self._numbers[index]].where(int(self._rows[index]))

    @property
    def settings(self) -> list[Any]:
        """What decides which row comes where."""
        return [[len(source) for source in self._sources], self._weights]

    def split(self, fraction: float) -> tuple["MixedSource", "MixedSource"]:
        """Two mixtures of the same weights, the second of the last `fraction` of each source.

        No row is in both, however often it is repeated.

        Raises:
            DataError: A source has too few rows for that.
        """
        first, last = [], []
        for source in self._sources:
            size = len(source)
            held_out = max(1, round(size * fraction))
            if not 0 < fraction < 1 or held_out == size:
                raise DataError(
                    f"A share of {fraction} cannot be held out of the {size} row(s) from "
                    f"{source.where(0)} on: it lies between 0 and 1, and leaves a row to train on."
                )
            first.append(_Part(source, 0, size - held_out))
            last.append(_Part(source, size - held_out, size))
        return MixedSource(first, self._weights), MixedSource(last, self._weights)


class _Part:
    """The rows of a source from one place up to another."""

    def __init__(self, source: _Source, start: int, stop: int):
        self._source, self._start, self._stop = source, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Any:
        return self._source[self._start + index]

    def where(self, index: int) -> str:
        return self._source.where(self._start + index)
