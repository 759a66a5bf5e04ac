import json
from collections import Counter

import keras
import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer, texts

from kerora.data import is_token_data, make_batches, mix, open_source
from kerora.data.errors import DataError

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="rows do not depend on the backend"
)

MANY = [f"many {i}" for i in range(90)]
FEW = [f"few {i}" for i in range(10)]


def rows_of(source):
    return [source[i] for i in range(len(source))]


@pytest.fixture
def files(tmp_path):
    for name, rows in (("many", MANY), ("few", FEW)):
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
    return {str(tmp_path / "many.txt"): 3, str(tmp_path / "few.txt"): 1}


def test_shares_are_those_of_the_weights_and_no_row_is_lost():
    counts = Counter(rows_of(mix([MANY, FEW], weights=[3, 1])))
    assert {counts[row] for row in MANY} == {1}
    assert {counts[row] for row in FEW} == {3}
    counts = Counter(rows_of(mix([MANY, FEW], weights=[1, 2.5])))
    assert {counts[row] for row in MANY} == {1}
    assert sum(counts[row] for row in FEW) == 225
    assert {counts[row] for row in FEW} <= {22, 23}
    # A weight below a source's share of the rows repeats the others instead.
    counts = Counter(rows_of(mix([MANY, FEW], weights=[99, 1])))
    assert {counts[row] for row in FEW} == {1}
    assert {counts[row] for row in MANY} == {11}


def test_sources_alternate_in_proportion():
    rows = rows_of(mix([MANY, FEW], weights=[3, 1]))
    for start in range(0, 120, 4):
        assert sum(row.startswith("few") for row in rows[start : start + 4]) == 1


def test_names_with_weights_are_a_mixture(files):
    assert not is_token_data(files)
    source = open_source(files)
    assert rows_of(source) == rows_of(mix([MANY, FEW], weights=[3, 1]))
    places = {source.where(i) for i in range(len(source))}
    assert len(places) == 100
    assert f"{list(files)[1]}:10" in places


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2], [1, float("nan")], [1, "much"]])
def test_weights_are_positive_and_one_per_source(weights):
    with pytest.raises(DataError, match="one weight above 0 for each of its 2 sources"):
        mix([MANY, FEW], weights)


def test_a_weight_that_repeats_a_source_without_end_is_refused():
    with pytest.raises(DataError, match="100,000 times"):
        mix([FEW, FEW], [1, 100_000])


def batches_of(weights=(1, 2), **options):
    data = mix([texts(700), ["b" + text for text in texts(90)]], weights)
    settings = {"sequence_length": 256, "batch_size": 4, "seed": 3, **options}
    return make_batches(data, ByteTokenizer(), **settings)


def test_a_mixture_continues_where_it_stopped():
    iterator = iter(batches_of().repeat())
    whole = [next(iterator) for _ in range(60)]
    first = batches_of().repeat()
    stopped = iter(first)
    for _ in range(37):
        next(stopped)
    state = json.loads(json.dumps(first.state_at(37)))
    rest = iter(batches_of().repeat().starting_at(state))
    for (inputs, labels, weights), again in zip(whole[37:], rest, strict=False):
        np.testing.assert_array_equal(inputs["token_ids"], again[0]["token_ids"])
        np.testing.assert_array_equal(labels, again[1])
        np.testing.assert_array_equal(weights, again[2])
    with pytest.raises(DataError, match="other data or settings"):
        batches_of(weights=(2, 4.001)).repeat().starting_at(state)


def tokens_of(batches):
    """The numbers at the start of the texts, as bytes."""
    found = set()
    for inputs, _, _ in batches:
        ids, segments = inputs["token_ids"], np.asarray(inputs["padding_mask"])
        for row, parts in zip(ids, segments, strict=True):
            for part in range(1, int(parts.max()) + 1):
                found.add(bytes((row[parts == part][1:] - 16).clip(0).astype(np.uint8)))
    return found


def test_held_out_rows_are_of_every_source_and_never_trained_on():
    train, held_out = batches_of(train_on="all").split(0.1)
    trained, kept = tokens_of(train), tokens_of(held_out)
    assert len(kept) == 79
    assert len(trained) == 790 - 79
    assert not trained & kept
    with pytest.raises(DataError, match="cannot be held out"):
        make_batches(mix([MANY, ["a"]], [1, 1]), ByteTokenizer(), sequence_length=64,
                     batch_size=1).split(0.1)  # fmt: skip
