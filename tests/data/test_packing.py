import time

import numpy as np
import pytest

from kerora.data.packing import assemble, one_per_row, pack


def dolly_like_lengths(count: int) -> np.ndarray:
    """A median of about 70 tokens and a long tail, as in instruction data, cut at 512."""
    draw = np.random.default_rng(0).lognormal(mean=4.25, sigma=0.75, size=count)
    return np.clip(draw, 8, 512).astype(np.int64)


def test_every_example_is_placed_once_and_rows_hold_what_they_can():
    lengths = dolly_like_lengths(3000)
    rows = pack(lengths, 512)
    assert sorted(np.concatenate(rows).tolist()) == list(range(3000))
    assert max(lengths[row].sum() for row in rows) <= 512
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize("examples", [24, 96, 384, 1000])
@pytest.mark.parametrize("capacity", [512, 1024, 4096])
def test_instruction_data_takes_the_fewest_rows_that_its_tokens_could(examples, capacity):
    for lengths in np.split(dolly_like_lengths(16 * examples), 16):
        assert len(pack(lengths, capacity)) == -(-lengths.sum() // capacity)


def test_rows_are_near_the_fewest_that_can_be():
    # No two of the halves and a bit fit together, and each leaves room for one small one.
    lengths = np.array([33] * 20 + [31] * 20)
    assert len(pack(lengths, 64)) == 20


def test_packing_is_a_matter_of_milliseconds():
    lengths = dolly_like_lengths(16_384)
    pack(lengths, 512)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        pack(lengths, 512)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_the_same_lengths_give_the_same_rows():
    lengths = dolly_like_lengths(500)
    first, second = pack(lengths, 512), pack(lengths.copy(), 512)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_lengths_that_do_not_fit_are_refused():
    for lengths in ([5, 9], [0, 3]):
        with pytest.raises(ValueError, match="capacity=8"):
            pack(np.array(lengths), 8)
    assert pack(np.zeros(0, np.int64), 8) == []


def test_a_batch_by_hand():
    tokens = np.array([1, 11, 12, 1, 21, 22, 23], np.int32)
    weights = np.array([0, 0, 2, 0, 1, 1, 1], np.float32)
    x, y, w = assemble(
        tokens,
        weights,
        np.array([0, 3, 7]),
        [np.array([0, 1])],
        batch_size=2,
        sequence_length=9,
        pad_token_id=99,
    )
    pad = [99] * 9
    assert x["token_ids"].tolist() == [[1, 11, 12, 1, 21, 22, 23, 99, 99], pad]
    assert x["padding_mask"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0, 0], [0] * 9]
    assert y.tolist() == [[11, 12, 99, 21, 22, 23, 99, 99, 99], pad]
    assert w.tolist() == [[0, 2, 0, 1, 1, 1, 0, 0, 0], [0] * 9]
    kinds = [x["token_ids"].dtype, x["padding_mask"].dtype, y.dtype, w.dtype]
    assert kinds == [np.int32, np.int32, np.int32, np.float32]


def test_labels_never_cross_examples():
    lengths = dolly_like_lengths(400)
    owners = np.repeat(np.arange(400, dtype=np.int32), lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = pack(lengths, 512)
    x, y, w = assemble(
        owners,
        np.ones(len(owners), np.float32),
        offsets,
        rows,
        batch_size=len(rows),
        sequence_length=512,
        pad_token_id=-1,
    )
    learned = w > 0
    assert (y[learned] == x["token_ids"][learned]).all()
    assert learned.sum() == len(owners) - 400  # all but the last token of each example
    segments = x["padding_mask"]
    starts = np.diff(segments, prepend=0, axis=1) != 0
    assert not learned[:, :-1][starts[:, 1:]].any()


def test_unpacked_rows_hold_one_example_each():
    assert [row.tolist() for row in one_per_row(3)] == [[0], [1], [2]]
