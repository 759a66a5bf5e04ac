"""Rows found again on disk make the batches that tokenising them makes, whatever befell the files.

The other side is `Encoder` without a cache, in small data sets and in `REFERENCE`.
"""

import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from kerora.data import row_cache, windows
from kerora.data.encoding import Encoder
from kerora.data.pipeline import make_batches
from kerora.models.bundled import bundled_path

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the cache is the same on every backend"
)


@pytest.fixture(scope="module")
def tokenizer():
    from keras_hub.models import GemmaTokenizer

    return GemmaTokenizer.from_preset(str(bundled_path("tiny_gemma")))


@pytest.fixture(autouse=True)
def rows_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kerora" / "rows"


def rows_of(count: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"Say {n} in {n % 7} words.", "response": f"{n} " * (1 + n % 50)}
        for n in range(start, start + count)
    ]


def batches_of(tokenizer, data=None, **options):
    settings = {"sequence_length": 64, "batch_size": 4, **options}
    return make_batches(rows_of(600) if data is None else data, tokenizer, **settings)


def arrays(batches):
    return [np.stack([*x.values(), y, w.view(np.int32)]) for x, y, w in batches]


def assert_equal(first, second):
    np.testing.assert_array_equal(np.stack(arrays(first)), np.stack(arrays(second)))


@pytest.fixture
def tokenised(monkeypatch):
    """The numbers of rows that were tokenised."""
    counts = []
    encode_many = Encoder.encode_many

    def counted(self, rows, weights):
        counts.append(len(rows))
        return encode_many(self, rows, weights)

    monkeypatch.setattr(Encoder, "encode_many", counted)
    return counts


@pytest.fixture
def uncached(monkeypatch):
    """Makes batches that know of no cache."""

    def make(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("kerora.data.pipeline.FEWEST_ROWS", 1 << 40)
            return batches_of(*arguments, **options)

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"template": "chat"},
        {"train_on": "all", "on_long_row": "skip", "seed": 3},
        {"template": "Q: {instruction}\nA: {response}", "add_start_token": False},
        {"sample_weight": [0.0, 0.5, 2.0] * 200, "packing": False},
    ],
)
def test_batches_are_equal_cold_and_warm(tokenizer, tokenised, uncached, options):
    wanted = uncached(tokenizer, **options)
    cold = batches_of(tokenizer, **options)
    assert_equal(cold, wanted)
    assert sum(tokenised) == 1200
    warm = batches_of(tokenizer, **options)
    assert_equal(warm, wanted)
    assert sum(tokenised) == 1200
    assert warm.report() == cold.report() == wanted.report()


def test_a_bad_row_is_found_again_as_such(tokenizer, tokenised, uncached):
    short = [{"prompt": f"Say {n}.", "response": str(n)} for n in range(310)]
    data = [*short, {"instruction": "nothing"}, {"response": ""}]
    data[5] = {"instruction": "long " * 100, "response": "short"}
    wanted = uncached(tokenizer, data, on_bad_row="skip", on_long_row="skip")
    assert wanted.report().skipped == {"too long": 1, "missing field": 1, "unknown fields": 1}
    for _ in range(2):
        again = batches_of(tokenizer, data, on_bad_row="skip", on_long_row="skip")
        assert again.report() == wanted.report()
        assert_equal(again, wanted)
    assert sum(tokenised) == 2 * len(data)


def test_a_file_that_ends_with_bad_rows_is_used_again(tokenizer, tokenised, uncached):
    bad = [{"prompt": f"Say {n}.", "response": ""} for n in range(300)]
    for data in ([*rows_of(windows._ROWS_AT_ONCE), *bad[:8]], bad[8:]):
        del tokenised[:]
        wanted = uncached(tokenizer, data, on_bad_row="skip").report()
        for _ in range(3):
            assert batches_of(tokenizer, data, on_bad_row="skip").report() == wanted
        assert sum(tokenised) == 2 * len(data)


def flip_a_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip_a_byte(path, -1),
        lambda path: flip_a_byte(path, 20),
        lambda path: flip_a_byte(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, path.stat().st_size - 7),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(path.read_bytes().replace(b"offsets", b"offsetz")),
    ],
)
def test_a_damaged_file_is_made_anew(tokenizer, tokenised, uncached, rows_folder, damage):
    wanted = uncached(tokenizer)
    batches_of(tokenizer).report()
    (path,) = rows_folder.glob("*/*")
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    assert_equal(batches_of(tokenizer), wanted)
    assert sum(tokenised) == 1800
    assert path.read_bytes() == whole
    assert list(rows_folder.glob("*/*")) == [path]
    assert_equal(batches_of(tokenizer), wanted)
    assert sum(tokenised) == 1800


def test_a_file_that_was_removed_while_in_use_is_made_anew(tokenizer, tokenised, rows_folder):
    batches_of(tokenizer).report()
    warm = batches_of(tokenizer)
    cache = warm._reader.cache
    cache.encode_many([], [], {})
    (path,) = rows_folder.glob("*/*")
    path.unlink()
    wanted = arrays(batches_of(tokenizer))
    np.testing.assert_array_equal(np.stack(arrays(warm)), np.stack(wanted))


def test_a_file_that_grew_is_tokenised_where_it_is_new(tokenizer, tokenised, uncached, tmp_path):
    path = tmp_path / "rows.jsonl"
    for size, new in ((400, 400), (1000, 600), (1000, 0)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(size)))
        tokenised.clear()
        batches = batches_of(tokenizer, path)
        batches.report()
        assert sum(tokenised) == new
    wanted = uncached(tokenizer, path)
    assert_equal(batches_of(tokenizer, path), wanted)
    path.write_text(path.read_text().replace("Say 17 in", "Say 18 in"))
    tokenised.clear()
    changed = batches_of(tokenizer, path)
    changed.report()
    assert sum(tokenised) == 1
    assert_equal(changed, uncached(tokenizer, path))


def test_windows_in_another_order_and_mixtures_find_their_rows(
    tokenizer, tokenised, uncached, monkeypatch
):
    monkeypatch.setattr(windows, "_MOST_ROWS", 300)
    data = rows_of(1500)
    list(batches_of(tokenizer, data, seed=1))
    tokenised.clear()
    assert_equal(batches_of(tokenizer, data, seed=2), uncached(tokenizer, data, seed=2))
    assert sum(tokenised) == 1500  # by the one without a cache
    from kerora.data import mix

    mixture = mix([data[:600], data[600:]], [2, 1])
    tokenised.clear()
    list(batches_of(tokenizer, mixture))
    assert sum(tokenised) == 0


def test_another_epoch_of_large_data_is_not_tokenised_again(tokenizer, tokenised, monkeypatch):
    monkeypatch.setattr(windows, "_MOST_ROWS", 300)
    monkeypatch.setattr(windows, "_CACHE_BYTES", 0)
    batches = batches_of(tokenizer, rows_of(1200))
    endless = iter(batches.repeat())
    count = sum(1 for _ in batches)
    for _ in range(2 * count):
        next(endless)
    assert sum(tokenised) == 1200


def test_a_run_continues_exactly_on_a_warm_cache(tokenizer, tokenised, uncached, monkeypatch):
    monkeypatch.setattr(windows, "_MOST_ROWS", 300)
    iterator = iter(uncached(tokenizer, rows_of(900), seed=5).repeat())
    whole = [next(iterator) for _ in range(150)]
    first = batches_of(tokenizer, rows_of(900), seed=5).repeat()
    stopped = iter(first)
    for _ in range(71):
        next(stopped)
    state = json.loads(json.dumps(first.state_at(71)))
    rest = iter(batches_of(tokenizer, rows_of(900), seed=5).repeat().starting_at(state))
    assert_equal(whole[71:], [next(rest) for _ in range(150 - 71)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}),
        ({1: "x"}, {"1": "x"}),
        ([["x"]], [("x",)]),
        ("e\u0301", "\u00e9"),
        ("\ud800", "\ud801"),
    ],
)
def test_unlike_rows_have_unlike_keys(one, other):
    assert row_cache._key(one) != row_cache._key(other)
    copy = eval(repr(one))
    assert row_cache._key(copy) == row_cache._key(one)


def test_rows_of_other_things_are_encoded_each_time(tokenizer, tokenised, uncached):
    data = [{**row, "when": datetime.date(2020, 1, 1)} for row in rows_of(300)]
    for _ in range(2):
        assert_equal(batches_of(tokenizer, data), uncached(tokenizer, data))
    assert sum(tokenised) == 4 * 300


def test_small_data_is_not_kept(tokenizer, rows_folder):
    batches_of(tokenizer, rows_of(100)).report()
    assert not rows_folder.exists()


def test_a_folder_that_cannot_be_written_costs_a_note(tokenizer, uncached, rows_folder):
    rows_folder.parent.mkdir(parents=True)
    rows_folder.write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_equal(batches_of(tokenizer), uncached(tokenizer))
    assert [str(w.message).partition(":")[0] for w in caught] == [
        "Tokenised rows are not kept for the next run"
    ]


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_not_used_for_the_longest_time_makes_room(tokenizer, rows_folder, monkeypatch):
    made: list[Path] = []
    for length in (60, 61, 62):
        batches_of(tokenizer, sequence_length=length).report()
        made += set(rows_folder.glob("*/*")) - set(made)
        age(made[-1], 1000 - length)
    batches_of(tokenizer, sequence_length=60).report()
    total = sum(path.stat().st_size for path in made)
    monkeypatch.setattr(row_cache, "_MOST_BYTES", total + 20_000)
    batches_of(tokenizer, sequence_length=63).report()
    left = set(rows_folder.glob("*/*"))
    assert [path in left for path in made] == [True, False, True]
    assert len(left) == 3
    assert not made[1].parent.exists()


def test_data_larger_than_the_cache_keeps_what_fits(tokenizer, tokenised, rows_folder, monkeypatch):
    monkeypatch.setattr(windows, "_MOST_ROWS", 300)
    monkeypatch.setattr(row_cache, "_MOST_FILES", 2)
    for again in (1200, 600):
        tokenised.clear()
        list(batches_of(tokenizer, rows_of(1200)))
        assert sum(tokenised) == again
        assert len(list(rows_folder.glob("*/*"))) == 2


RUN = """
import hashlib, os, signal, sys
sys.path[:0] = {path!r}
{before}
from keras_hub.models import GemmaTokenizer
from kerora.models.bundled import bundled_path
from test_row_cache import arrays, batches_of
tokenizer = GemmaTokenizer.from_preset(str(bundled_path("tiny_gemma")))
digest = hashlib.sha256()
for array in arrays(batches_of(tokenizer)):
    digest.update(array.tobytes())
print(digest.hexdigest())
"""
KILLED_WHILE_WRITING = """
import tempfile
made = tempfile.mkstemp
def mkstemp(*a, **k):
    handle, name = made(*a, **k)
    if name.endswith(".partial"):
        os.write(handle, b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    return handle, name
tempfile.mkstemp = mkstemp
"""


def process(before=""):
    text = RUN.format(path=[str(Path(__file__).parent)], before=before)
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_writer_that_is_killed_leaves_a_usable_cache(tokenizer, uncached, rows_folder):
    killed = process(KILLED_WHILE_WRITING)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    (left,) = rows_folder.glob("*/*")
    assert left.suffix == ".partial"
    wanted = uncached(tokenizer)
    assert_equal(batches_of(tokenizer), wanted)
    assert_equal(batches_of(tokenizer), wanted)
    assert left.exists()  # another process may be writing it
    age(left, 2 * row_cache._ABANDONED_SECONDS)
    batches_of(tokenizer, sequence_length=50).report()
    assert not left.exists()


def test_two_processes_share_a_folder(tokenizer, uncached, rows_folder):
    both = [process(), process()]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said[0][1] + said[1][1]
    assert len(list(rows_folder.glob("*/*"))) == 1
    wanted = hashlib.sha256(b"".join(array.tobytes() for array in arrays(uncached(tokenizer))))
    assert {out.strip() for out, _ in said} == {wanted.hexdigest()}
