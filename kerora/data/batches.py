"""Batches for `fit`: deterministic, resumable, of one shape, ready ahead of the device."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from kerora.data.errors import DataError, RowProblem
from kerora.data.mixtures import MixedSource
from kerora.data.packing import assemble
from kerora.data.report import DataReport, add_up
from kerora.data.windows import WindowLoader, WindowReader, split_rows

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


class Batches(grain.IterDataset):
    """Batches of tokenised, packed rows; a Grain data set that `fit` takes as it is.

    Rows are taken in windows of some thousand. The rows of a window stay the same over the epochs,
    and so do the examples that share a packed row; the order of the packed rows is drawn anew from
    `(seed, epoch, window)`. So every epoch has the same number of steps, and any step can be
    reached without making those before it.

    Args:
        reader: Makes the windows.
        batch_size: Packed rows in a batch. The last batch of a window is filled with padding.
        shuffle: Whether the order is random; else it is the data's.
        seed: Of that order.
        epochs: How often the data is gone through; None is for ever, as `fit` with
            `steps_per_epoch` wants it.
        start: A state from `state_at`; None is the beginning.
        rows: Which rows of the source take part; None is all of them.

    Example:

    ```python
    batches = make_batches("train.jsonl", tokenizer, sequence_length=512, batch_size=8)
    model.fit(batches.repeat(), steps_per_epoch=batches.steps_per_epoch, epochs=3)
    ```
    """

    def __init__(
        self,
        reader: WindowReader,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        epochs: int | None = 1,
        start: dict[str, Any] | None = None,
        rows: range | None = None,
        _loader: WindowLoader | None = None,
    ):
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is at least 1. Received: {batch_size}")
        self._reader = reader
        self._shuffle = shuffle
        self._seed = seed
        self._epochs = epochs
        self.batch_size = batch_size
        length = reader.encoder.sequence_length
        self._rows = range(len(reader.source)) if rows is None else rows
        windows = split_rows(len(self._rows), length, seed if shuffle else None)
        self._row_numbers = [numbers + self._rows.start for numbers in windows]
        self._loader = _loader or WindowLoader(self._read_window, len(self._row_numbers))
        self._start = self._checked(start) if start else _beginning()
        self._earlier_counts = list(self._start["window_batches"])

    def _read_window(self, number: int) -> Any:
        return self._reader.read(self._row_numbers[number])

    @property
    def sequence_length(self) -> int:
        return self._reader.encoder.sequence_length

    @property
    def encoder(self) -> Any:
        """The `Encoder` of the rows, which also makes prompts for generation."""
        return self._reader.encoder

    def source_rows(self) -> Iterator[Any]:
        """The rows as they stand in the data, those that cannot be read left out."""
        for index in self._rows:
            try:
                yield self._reader.source[index]
            except RowProblem:
                continue

    def repeat(self) -> "Batches":
        """The same batches, epoch after epoch without end; the work already done is shared."""
        return self._copy(epochs=None, start=self._start)

    def split(self, fraction: float) -> tuple["Batches", "Batches"]:
        """Training batches, and validation batches of the last `fraction` of the rows.

        At least one row is held out. Of a mixture it is the last part of each source.

        Raises:
            DataError: One of the two would be empty.
        """
        if isinstance(self._reader.source, MixedSource):
            train_rows, validation_rows = self._reader.source.split(fraction)
            train = self._of_source(train_rows, self._shuffle)
            return train, self._of_source(validation_rows, False)
        count = len(self._rows)
        first = self._rows.start + count - max(1, round(count * fraction))
        parts = range(self._rows.start, first), range(first, self._rows.stop)
        if not 0 < fraction < 1 or not all(parts):
            raise DataError(
                f"A share of {fraction} cannot be held out of {count} row(s): it lies between 0 "
                "and 1, and leaves a row to train on."
            )
        train, validation = (
            Batches(
                self._reader,
                batch_size=self.batch_size,
                shuffle=shuffle,
                seed=self._seed,
                epochs=self._epochs,
                rows=part,
            )
            for part, shuffle in zip(parts, (self._shuffle, False), strict=True)
        )
        return train, validation

    def _of_source(self, source: MixedSource, shuffle: bool) -> "Batches":
        if self._reader.row_weights is not None:
            raise DataError("A mixture takes no sample_weight where rows are held out of it.")
        return Batches(
            dataclasses.replace(self._reader, source=source),
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self._seed,
            epochs=self._epochs,
        )

    def starting_at(self, state: dict[str, Any]) -> "Batches":
        """The same batches from a state of `state_at` on.

        Raises:
            DataError: The state belongs to other data or other settings.
        """
        return self._copy(epochs=self._epochs, start=state)

    def _copy(self, epochs: int | None, start: dict[str, Any]) -> "Batches":
        return Batches(
            self._reader,
            batch_size=self.batch_size,
            shuffle=self._shuffle,
            seed=self._seed,
            epochs=epochs,
            start=start if "fingerprint" in start else None,
            rows=self._rows,
            _loader=self._loader,
        )

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def batch_at(self, epoch: int, window: int, number: int) -> Batch | None:
        """One batch by its place; None where the window has no such batch.

        Returns:
            `({"token_ids", "padding_mask"}, labels, sample_weight)`; see `packing.assemble`.
        """
        prepared = self._loader.get(window)
        rows = prepared.rows
        first = number * self.batch_size
        if first >= len(rows):
            return None
        last = min(first + self.batch_size, len(rows))
        places = np.arange(first, last)
        if self._shuffle:
            order = np.random.default_rng((self._seed, epoch, window)).permutation(len(rows))
            places = order[first:last]
        return assemble(
            prepared.token_ids,
            prepared.loss_weights,
            prepared.offsets,
            [rows[place] for place in places],
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            pad_token_id=self._reader.encoder.pad_token_id,
        )

    def _window_batches(self, window: int) -> int | None:
        """How many batches a window has; None while that is not known."""
        if window < len(self._earlier_counts):
            return self._earlier_counts[window]
        counts = self._loader.counts.get(window)
        return None if counts is None else -(-counts.packed_rows // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, as `fit` wants it.

        Of shuffled data exact once all windows were read, and estimated from the rest before; data
        of one window (up to 16,384 rows) is read here. Data in its own order is counted through:
        sorted by length, say, its windows are unlike.
        """
        return self._estimated_steps() if self._shuffle else self.count_steps()

    def count_steps(self) -> int:
        """Batches in an epoch, exactly. What was not read yet is read, which takes time."""
        for window in range(len(self._row_numbers)):
            if self._window_batches(window) is None:
                self._loader.get(window)
        return max(1, sum(self._known_batches()))

    def _estimated_steps(self) -> int:
        known = self._known_batches()
        if not known:
            self._loader.get(0)
            known = self._known_batches()
        return max(1, round(sum(known) * len(self._row_numbers) / len(known)))

    def _known_batches(self) -> list[int]:
        numbers = (self._window_batches(window) for window in range(len(self._row_numbers)))
        return [number for number in numbers if number is not None]

    def report(self) -> DataReport:
        """What became of the rows read so far, the first window at least."""
        self._loader.get(0)
        total = add_up(self._loader.counts.values())
        positions = total.packed_rows * self.sequence_length
        return DataReport(
            total_rows=len(self._rows),
            rows=total.rows,
            examples=total.examples,
            skipped=total.skipped,
            skipped_examples=total.skipped_examples,
            truncated=total.truncated,
            tokens=total.tokens,
            supervised_tokens=total.supervised_tokens,
            packed_rows=total.packed_rows,
            fill=total.tokens / positions if positions else 0.0,
            steps_per_epoch=self._estimated_steps(),
            complete=len(self._known_batches()) == len(self._row_numbers),
        )

    def state_at(self, step: int) -> dict[str, Any]:
        """The state after `step` batches since the very beginning: a small dict for JSON.

        Args:
            step: Batches consumed, those before the start state included.

        Raises:
            DataError: That batch was not reached yet.
        """
        state = dict(self._start)
        left = step - state["step"]
        if left < 0:
            raise DataError(f"These batches start at step {state['step']}. Received: {step}")
        while left:
            count = self._window_batches(state["window"])
            if count is None:
                raise DataError(f"Step {step} lies in a part of the data that was not read yet.")
            if left < count - state["batch"]:
                state["batch"] += left
                break
            left -= count - state["batch"]
            self._advance(state)
        return self._saved({**state, "step": step})

    def _saved(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state with what is needed to go on from it in another process."""
        counts: list[int] = []
        for window in range(len(self._row_numbers)):
            count = self._window_batches(window)
            if count is None:
                break
            counts.append(count)
        return {**state, "window_batches": counts, "fingerprint": self._fingerprint()}

    def _advance(self, state: dict[str, Any]) -> None:
        """Moves a state to the start of the next window."""
        state["batch"] = 0
        state["window"] += 1
        if state["window"] == len(self._row_numbers):
            state["window"] = 0
            state["epoch"] += 1

    def _fingerprint(self) -> str:
        """Of all that decides which batch comes when."""
        encoder = self._reader.encoder
        settings = [
            [self._rows.start, self._rows.stop],
            self.batch_size,
            self._shuffle,
            self._seed,
            self._reader.packing,
            encoder.sequence_length,
            encoder.train_on,
            encoder.template,
            encoder.on_long_row,
        ]
        if isinstance(self._reader.source, MixedSource):
            settings.append(self._reader.source.settings)
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        if state.get("fingerprint") != self._fingerprint():
            raise DataError(
                "The saved position belongs to other data or settings: the number of rows, "
                "batch_size, sequence_length, seed, packing, train_on, template and on_long_row "
                "must be those of the run that is continued."
            )
        return dict(state)


class BatchIterator(grain.DatasetIterator):
    """Goes through `Batches`; its state can be saved and restored at any batch."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._state = dict(batches._start)

    def __next__(self) -> Batch:
        state = self._state
        empty_windows = 0
        while self._batches._epochs is None or state["epoch"] < self._batches._epochs:
            batch = self._batches.batch_at(state["epoch"], state["window"], state["batch"])
            if batch is not None:
                state["batch"] += 1
                state["step"] += 1
                return batch
            empty_windows += state["batch"] == 0
            if empty_windows > len(self._batches._row_numbers):
                break
            self._batches._advance(state)
        if not state["step"]:
            raise DataError(f"No row became an example: {self._batches.report()}")
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        return self._batches._saved(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        self._state = self._batches._checked(state)
        known = self._state["window_batches"]
        if len(known) > len(self._batches._earlier_counts):
            self._batches._earlier_counts = list(known)


def _beginning() -> dict[str, Any]:
    return {"step": 0, "epoch": 0, "window": 0, "batch": 0, "window_batches": []}
