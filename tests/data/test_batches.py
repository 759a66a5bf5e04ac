import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
from byte_tokenizer import ByteTokenizer, texts, to_text

from kerora.data import windows
from kerora.data.errors import DataError
from kerora.data.pipeline import make_batches


def make(data, **options):
    settings = {"sequence_length": 256, "batch_size": 3, **options}
    return make_batches(data, ByteTokenizer(), **settings)


def equal(first, second) -> bool:
    flat = [(*x.values(), y, w) for x, y, w in (first, second)]
    return all(np.array_equal(a, b) for a, b in zip(*flat, strict=True))


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def examples_of(batches) -> list[str]:
    """The texts of all packed examples, in the order of the batches."""
    found = []
    for x, _, _ in batches:
        for ids, segments in zip(x["token_ids"], x["padding_mask"], strict=True):
            found += [to_text(ids[segments == k]) for k in range(1, segments.max() + 1)]
    return found


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(windows, "_MOST_ROWS", 64)


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_holds_every_row_once(packing):
    data = texts(100)
    batches = make(data, packing=packing)
    assert sorted(examples_of(batches)) == sorted(f"<bos>{text}<eos>" for text in data)
    assert {x["token_ids"].shape for x, _, _ in batches} == {(3, 256)}


def test_without_shuffle_and_packing_the_order_is_the_datas():
    data = texts(10)
    assert examples_of(make(data, packing=False, shuffle=False)) == [
        f"<bos>{text}<eos>" for text in data
    ]


def test_the_last_batch_is_filled_up_with_padding():
    x, _, w = list(make(texts(4), packing=False))[-1]
    assert (x["padding_mask"][1:] == 0).all()
    assert (w[1:] == 0).all()
    assert (x["token_ids"][1:] == ByteTokenizer.pad_token_id).all()


def test_each_epoch_has_another_order_of_the_same_rows():
    batches = make(texts(100))
    steps = batches.steps_per_epoch
    both = take(batches.repeat(), 2 * steps)
    first, second = both[:steps], both[steps:]
    assert not all(equal(a, b) for a, b in zip(first, second, strict=True))
    assert sorted(examples_of(first)) == sorted(examples_of(second))


def test_the_seed_decides_the_order():
    one, same, other = (take(make(texts(100), seed=seed), 5) for seed in (1, 1, 2))
    assert all(equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("step", [0, 1, 30, 31, 32, 33, 60, 61, 95, 140])
def test_going_on_from_any_step_gives_the_same_batches(small_windows, step):
    data = texts(200)
    batches = make(data).repeat()
    through = take(batches, 150)
    # Through JSON and into new objects, as after a restart.
    state = json.loads(json.dumps(batches.state_at(step)))
    assert state["step"] == step
    resumed = take(make(data).repeat().starting_at(state), 150 - step)
    assert all(equal(a, b) for a, b in zip(through[step:], resumed, strict=True))


def test_positions_hold_over_several_restarts(small_windows):
    data = texts(200)
    through = take(make(data).repeat(), 150)
    state, got = None, []
    for count in (20, 1, 44, 70, 15):
        batches = make(data).repeat()
        batches = batches.starting_at(state) if state else batches
        got += take(batches, count)
        state = json.loads(json.dumps(batches.state_at(len(got))))
    assert all(equal(a, b) for a, b in zip(through, got, strict=True))


def test_the_iterators_own_state_restores_it(small_windows):
    data = texts(200)
    iterator = iter(make(data).repeat())
    for _ in range(77):
        next(iterator)
    other = iter(make(data).repeat())
    other.set_state(iterator.get_state())
    for _ in range(50):
        assert equal(next(iterator), next(other))
    assert iterator.get_state() == other.get_state()


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"batch_size": 2}, {"sequence_length": 300}, {"packing": False}]
)
def test_a_position_of_other_settings_is_refused(options):
    state = make(texts(20)).state_at(0)
    with pytest.raises(DataError, match="other data or settings"):
        make(texts(20), **options).starting_at(state)
    with pytest.raises(DataError, match="other data or settings"):
        make(texts(21)).starting_at(state)


def test_a_step_that_was_not_reached_has_no_state(small_windows):
    with pytest.raises(DataError, match="not read yet"):
        make(texts(200)).state_at(1000)


def test_steps_per_epoch_are_exact_for_one_window_and_near_for_more(monkeypatch):
    # Of 64 rows ten batches: that one more or less is a tenth.
    monkeypatch.setattr(windows, "_MOST_ROWS", 256)
    for count in (50, 2560):
        batches = make(texts(count))
        promised = batches.steps_per_epoch
        steps = sum(1 for _ in batches)
        assert abs(promised - steps) <= (0 if count == 50 else 0.1 * steps)
        assert batches.steps_per_epoch == steps
        assert batches.report().complete


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("longest_first", [False, True])
def test_steps_are_counted_where_windows_are_unlike(small_windows, shuffle, longest_first):
    data = sorted(texts(300), key=len, reverse=longest_first)
    batches = make(data, shuffle=shuffle)
    if not shuffle:
        assert make(data, shuffle=False).steps_per_epoch == sum(1 for _ in batches)
    assert batches.repeat().count_steps() == sum(1 for _ in make(data, shuffle=shuffle))


def test_the_report_counts():
    data = [{"prompt": "p" * 9, "response": "r" * 9}] * 8
    data += [{"prompt": "p" * 99, "response": "r"}, {"prompt": "p", "response": "r" * 99}]
    data += [{"prompt": "p", "response": ""}, {"prompt": "p"}, 3]
    report = make(data, sequence_length=40, on_bad_row="skip").report()
    assert (report.total_rows, report.rows, report.examples) == (13, 13, 9)
    assert report.skipped == {
        "prompt too long": 1,
        "empty response": 1,
        "unknown fields": 1,
        "not a record": 1,
    }
    assert report.truncated == 1
    assert report.tokens == 8 * 20 + 40
    assert report.supervised_tokens == 8 * 10 + 38
    assert (report.packed_rows, report.fill, report.steps_per_epoch) == (5, 1.0, 2)
    assert "row 10 of the list: empty response" in report.skipped_examples[1]
    assert "1 rows skipped: empty response" in str(report)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"prompt": "p", "response": ""}', "empty response"),
        (b'{"prompt": "p"}', "unknown fields"),
        (b'{"instruction": "p"}', "missing field"),
        (b'{"prompt": "caf\xe9", "response": "r"}', "wrong encoding"),
        (b'[{"role": "assistant", "content": "\\ud83d"}]', "wrong encoding"),
        (b"[1, 2]", "not a conversation"),
        (b"17", "not a record"),
    ],
)
def test_bad_rows_stop_with_file_and_line_or_are_counted(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    good = b'{"prompt": "p", "response": "r"}\n'
    path.write_bytes(good * 2 + line + b"\n" + good)
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: {reason}.*set on_bad_row to 'skip'"):
        make(str(path)).report()
    report = make(str(path), on_bad_row="skip").report()
    assert (report.examples, report.skipped) == (3, {reason: 1})
    assert report.skipped_examples[0].startswith(f"{path}:3: {reason}")


@pytest.mark.parametrize(
    ("header", "template", "reason"),
    [
        ("What is A?,It is B.", None, r"unknown fields \(found \['It is B.', 'What is A\?'\]"),
        ("question,answer", "Q: {asked} A: {told}", "missing field"),
    ],
)
def test_what_every_row_lacks_is_not_told_as_a_row(header, template, reason, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\nWhat is C?,It is D.\nWhat is E?,It is F.\n")
    with pytest.raises(DataError, match=rf"rows\.csv:2: {reason}.*line 1 is read as") as told:
        make(str(path), template=template).report()
    assert "on_bad_row" not in str(told.value)


def test_long_rows_follow_their_own_policy():
    data = ["x" * 300, "y"]
    with pytest.raises(DataError, match=r"row 0 of the list: too long.*sequence_length"):
        make(data, on_long_row="stop", on_bad_row="skip").report()
    assert make(data, on_long_row="skip").report().skipped == {"too long": 1}
    assert make(data).report().truncated == 1


def test_data_without_an_example_is_an_error():
    with pytest.raises(DataError, match="No row became an example"):
        next(iter(make([{"prompt": "p", "response": ""}], on_bad_row="skip").repeat()))


def test_weights_of_rows_and_labels():
    data = [{"prompt": "p", "response": "ab"}, {"prompt": "p", "response": "ac"}]
    batches = make(
        data,
        packing=False,
        shuffle=False,
        sample_weight=[1.0, 0.5],
        class_weight={ord("b") + 16: 3.0},
    )
    _, _, weights = next(iter(batches))
    assert weights[:2, :4].tolist() == [[0, 1, 3, 1], [0, 0.5, 0.5, 0.5]]
    with pytest.raises(DataError, match=r"expected the shape \(2,\)"):
        make(data, sample_weight=[1.0])


def test_a_split_shares_no_row_and_loses_none():
    data = texts(50)
    train, validation = make(data).split(0.2)
    assert sorted(examples_of(validation)) == [f"<bos>{text}<eos>" for text in data[40:]]
    assert sorted(examples_of(train)) == [f"<bos>{text}<eos>" for text in data[:40]]
    train, validation = make(data).split(0.001)
    assert examples_of(validation) == [f"<bos>{data[49]}<eos>"], "one row at least"
    for rows, fraction in ((data, 0.0), (data, 1.0), (data[:1], 0.5)):
        with pytest.raises(DataError, match=f"{fraction} cannot be held out of {len(rows)} row"):
            make(rows).split(fraction)


def test_y_holds_responses():
    x, _, w = next(iter(make(["p", "q"], y=["r", "s"], packing=False, shuffle=False)))
    assert to_text(x["token_ids"][1, :4]) == "<bos>qs<eos>"
    assert w[1, :4].tolist() == [0, 1, 1, 0]
    with pytest.raises(DataError, match="both hold texts"):
        make("file.jsonl", y=["r"])


def test_pandas_columns_are_rows_responses_and_weights():
    table = pandas.DataFrame({"x": ["p", "q"], "y": ["r", "s"], "w": [1.0, 0.5]}, index=[1, 0])
    options = {"packing": False, "shuffle": False, "sample_weight": table["w"]}
    x, _, w = next(iter(make(table["x"], y=table["y"], **options)))
    assert [to_text(ids[:4]) for ids in x["token_ids"][:2]] == ["<bos>pr<eos>", "<bos>qs<eos>"]
    assert w[:2, :4].tolist() == [[0, 1, 1, 0], [0, 0.5, 0.5, 0]]


def test_the_next_window_is_made_while_this_one_is_used(small_windows, monkeypatch):
    batches = make(texts(192))
    read = batches._reader.read
    reads = []

    def slow(self, indices):
        reads.append(len(indices))
        time.sleep(0.2)
        return read(indices)

    monkeypatch.setattr(type(batches._reader), "read", slow)
    batches.batch_at(0, 0, 0)
    time.sleep(0.5)
    assert len(reads) == 2
    start = time.perf_counter()
    batches.batch_at(0, 1, 0)
    assert time.perf_counter() - start < 0.1


def test_an_error_in_a_later_window_reaches_the_loop(small_windows):
    data = [*texts(500)]
    data[300] = ""
    with pytest.raises(DataError, match="row 300 of the list"):
        list(make(data, shuffle=False))


def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(windows, "_MOST_ROWS", 512)
    monkeypatch.setattr(windows, "_CACHE_BYTES", 0)
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text('{"text": "a line of some length, as it stands in a file"}\n' * count)
        tracemalloc.start()
        for _ in make(str(path), batch_size=64):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The tokens of a row and their weights alone take 55 * 8 bytes.
    assert peaks[1] - peaks[0] < 0.25 * 18_000 * 55 * 8


_LEAVES_EARLY = """
import io, sys
import sentencepiece
from kerora.data import make_batches

model = io.BytesIO()
texts = ["the quick brown fox jumps over the lazy dog " * 40] * 60
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_writer=model, vocab_size=60, model_type="bpe",
    hard_vocab_limit=False, minloglevel=2,
)

class Tokenizer:
    _sentence_piece_spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    end_token_id = 1

batches = make_batches(texts * 1000, Tokenizer(), sequence_length=4096, batch_size=8)
next(iter(batches))
"""


def test_a_process_may_end_while_a_window_is_made():
    command = [sys.executable, "-c", _LEAVES_EARLY]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
