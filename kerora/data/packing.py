"""Which examples share a row, and the arrays of a batch of such rows."""

from collections.abc import Sequence

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Places examples in as few rows as it can.

    A row takes the longest example that is left, and then those that fill it best: minimum bin
    slack with the largest item fixed (Gupta and Ho, 1999; Fleszar and Hindi, 2002). Which sums of
    lengths can be reached is kept in the bits of one integer, and the search ends where a row is
    full.

    Args:
        lengths: int `(examples,)`, each between 1 and `capacity`.
        capacity: The tokens a row holds.

    Returns:
        For each row the indices of its examples in ascending order; rows are ordered by their
        first example. The same lengths give the same rows.

    Example:

    ```python
    pack(np.array([3, 5, 5, 2]), capacity=7)  # [array([0]), array([1, 3]), array([2])]
    ```
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"Lengths lie between 1 and capacity={capacity}. "
            f"Received: {lengths.min()} to {lengths.max()}"
        )
    examples: dict[int, list[int]] = {}  # by length, descending; of each the first is the last
    for example in np.argsort(-lengths, kind="stable").tolist():
        examples.setdefault(int(lengths[example]), []).insert(0, example)
    rows = []
    while examples:
        longest = next(iter(examples))
        row = []
        for length in [longest, *_fullest(examples, longest, capacity - longest)]:
            row.append(examples[length].pop())
            if not examples[length]:
                del examples[length]
        rows.append(np.sort(np.asarray(row)))
    return sorted(rows, key=lambda row: int(row[0]))


def _fullest(examples: dict[int, list[int]], taken: int, room: int) -> list[int]:
    """Lengths whose sum comes nearest to `room` from below; of equal sums one of long examples.

    Args:
        examples: By length, descending.
        taken: Of this length there is one less.
        room: Tokens.
    """
    within = (1 << room + 1) - 1
    lengths: list[int] = []
    reached = [1]  # Before each length the sums of those before it, as bits.
    for length, left in examples.items():
        for _ in range(min(len(left) - (length == taken), room // length)):
            lengths.append(length)
            reached.append((reached[-1] | reached[-1] << length) & within)
        if reached[-1] >> room:
            break
    total = reached[-1].bit_length() - 1
    chosen = []
    for length, before in zip(reversed(lengths), reversed(reached[:-1]), strict=True):
        if not before >> total & 1:
            chosen.append(length)
            total -= length
    return chosen


def one_per_row(count: int) -> list[np.ndarray]:
    """The rows of data that is not packed, in the form that `pack` returns."""
    return [np.asarray([example]) for example in range(count)]


def assemble(
    token_ids: np.ndarray,
    loss_weights: np.ndarray,
    offsets: np.ndarray,
    rows: Sequence[np.ndarray],
    *,
    batch_size: int,
    sequence_length: int,
    pad_token_id: int,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The arrays of one batch.

    Args:
        token_ids: int32 `(tokens,)`, all examples one after the other.
        loss_weights: float32 `(tokens,)`, the weight of the loss on each of these tokens.
        offsets: int `(examples + 1,)`, where each example starts.
        rows: At most `batch_size` rows of example indices.
        batch_size: Missing rows are filled up with padding.
        sequence_length: The length of a row.
        pad_token_id: Fills `token_ids` and labels where there is no example.

    Returns:
        `({"token_ids", "padding_mask"}, labels, sample_weight)`, each `(batch_size,
        sequence_length)`: int32, int32, int32 and float32. `padding_mask` numbers the examples of
        a row from 1, with 0 for padding. The label of a token is the next token of the same
        example; the last token of an example has none, and weighs 0.
    """
    shape = (batch_size, sequence_length)
    inputs = np.full(shape, pad_token_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    labels = np.full(shape, pad_token_id, np.int32)
    weights = np.zeros(shape, np.float32)
    for row, examples in enumerate(rows):
        position = 0
        for number, example in enumerate(examples, start=1):
            start, end = int(offsets[example]), int(offsets[example + 1])
            stop = position + end - start
            inputs[row, position:stop] = token_ids[start:end]
            segment_ids[row, position:stop] = number
            labels[row, position : stop - 1] = token_ids[start + 1 : end]
            weights[row, position : stop - 1] = loss_weights[start + 1 : end]
            position = stop
    return {"token_ids": inputs, "padding_mask": segment_ids}, labels, weights
