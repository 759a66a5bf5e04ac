import gzip
import json

import numpy as np
import pytest

from kerora.data.errors import DataError, RowProblem
from kerora.data.sources import open_source

ROWS = [{"prompt": f"q{i}, “é”\n", "response": f'a{i} "x", y'} for i in range(7)]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


def write_csv(path, rows):
    import csv

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=3)


def write_json(path, rows):
    path.write_text(json.dumps(rows), "utf-8")


def write_json_columns(path, rows):
    write_json(path, {name: [row[name] for row in rows] for name in rows[0]})


def write_json_wrapped(path, rows):
    write_json(path, {"data": rows, "version": 1})


def write_arrow_file(path, rows):
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with pyarrow.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_stream(path, rows):
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def gzipped(write):
    def write_packed(path, rows):
        write(path, rows)
        data = path.read_bytes()
        # Two members, as files that were joined or written in parallel have them.
        path.write_bytes(gzip.compress(data[:50], mtime=0) + gzip.compress(data[50:]))

    return write_packed


def zstandard(write):
    def write_packed(path, rows):
        import pyarrow

        write(path, rows)
        path.write_bytes(pyarrow.compress(path.read_bytes(), codec="zstd", asbytes=True))

    return write_packed


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".jsonl", write_jsonl),
        (".csv", write_csv),
        (".parquet", write_parquet),
        (".json", write_json),
        (".json", write_json_columns),
        (".json", write_json_wrapped),
        (".arrow", write_arrow_file),
        (".arrow", write_arrow_stream),
        (".jsonl.gz", gzipped(write_jsonl)),
        (".csv.gz", gzipped(write_csv)),
        (".json.gz", gzipped(write_json)),
        (".jsonl.zst", zstandard(write_jsonl)),
        (".csv.zst", zstandard(write_csv)),
    ],
)
def test_rows_come_back_in_any_order(tmp_path, suffix, write):
    path = tmp_path / f"data{suffix}"
    write(path, ROWS)
    source = open_source(str(path))
    assert len(source) == len(ROWS)
    for index in np.random.default_rng(0).permutation(len(ROWS)):
        assert source[int(index)] == ROWS[index]
    assert str(path) in source.where(0)


def test_txt_has_one_row_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntwo é\nthree".encode())
    source = open_source(path)
    assert [source[i] for i in range(len(source))] == ["one", "two é", "three"]
    assert [source.where(i) for i in range(3)] == [f"{path}:1", f"{path}:4", f"{path}:5"]


def test_globs_and_lists_of_files_are_joined_in_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:3])
    for data in (str(tmp_path / "*.jsonl"), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]):
        source = open_source(data)
        assert [source[i] for i in range(len(source))] == ROWS
        assert source.where(4) == f"{tmp_path / 'b.jsonl'}:2"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_of_semicolons_or_tabs(separator, tmp_path):
    path = tmp_path / "a.csv"
    lines = [["prompt", "response"], ["a, b", f'"c{separator} ""d"""'], ['"e\nf"', "g"]]
    path.write_text("\n".join(map(separator.join, lines)))
    source = open_source(path)
    assert [source[i] for i in range(len(source))] == [
        {"prompt": "a, b", "response": f'c{separator} "d"'},
        {"prompt": "e\nf", "response": "g"},
    ]


@pytest.mark.parametrize("character", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r")
def test_csv_fields_hold_other_line_breaks(character, tmp_path):
    path, text = tmp_path / "a.csv", f"a{character}b"
    field = f'"{text}"' if character == "\r" else text
    path.write_text(f"prompt,response\n{field},c\nd,{field}\n", "utf-8", newline="")
    rows = [{"prompt": text, "response": "c"}, {"prompt": "d", "response": text}]
    source = open_source(path)
    assert [source[i] for i in range(len(source))] == rows
    assert source.where(1) == f"{path}:3"


def test_csv_lines_are_counted_over_quoted_line_breaks(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, ROWS)
    # Every record spans two lines; the header is line 1.
    assert open_source(path).where(2) == f"{path}:6"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_wrong_encoding_is_found_in_its_row_alone(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    lines = [b'{"text": "one"}', b'{"text": "caf\xe9"}', b'{"text": "two"}']
    path.write_bytes(b"\n".join([b"text"] * (suffix == ".csv") + lines))
    source = open_source(path)
    assert len(source) == 3
    source[0], source[2]
    with pytest.raises(RowProblem, match=r"wrong encoding.*0xe9"):
        source[1]


def test_a_line_that_is_no_json_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(RowProblem, match="not JSON"):
        open_source(path)[1]


def test_a_csv_record_with_too_few_values_is_a_problem(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\na,b\nc\n")
    with pytest.raises(RowProblem, match="missing field"):
        open_source(path)[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no_such_file.jsonl", r"Tried 'no_such_file\.jsonl' as a file, as a glob.*tfds:"),
        ("What is the capital of France?", r"pass a list"),
        ([], "no rows"),
        ({}, "empty"),
        ({"a": [1], "b": [1, 2]}, "differ in length"),
        (7, "Cannot read training data of this type"),
        ("tfds:mnist", "tfds:NAME/SPLIT"),
    ],
)
def test_what_is_no_data_is_refused(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"x", r"\.jsonl, \.json, \.csv, \.txt, \.parquet"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"a": [1], "b": 2, "c": [3]}', "neither columns"),
        ("a.parquet", b"not parquet", "no readable Parquet"),
        ("a.arrow", b"not arrow", "no readable Arrow"),
        ("a.jsonl.gz", b"{}", r"a\.jsonl\.gz cannot be unpacked as gzip"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-12],
            "cannot be unpacked as gzip",
        ),
        ("a.jsonl.zst", b"{}", "cannot be unpacked as zstd"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), r"a\.csv\.gz is empty"),
        ("a.xlsx.gz", b"x", r"\.jsonl, .*\.jsonl\.gz"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\none\ntwo\rthree\n", r"a\.csv:3 cannot be read as CSV: new-line.*quotes"),
        ("a.csv", b"text\rone\rtwo\r", r"a\.csv:1 cannot be read as CSV: new-line.*\\r\\n"),
        ("a.jsonl", b"\n\n", "no rows"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_a_folder_is_refused_with_a_glob_to_use(tmp_path):
    with pytest.raises(DataError, match=r"\*\.jsonl"):
        open_source(tmp_path)


def test_the_index_of_a_large_file_takes_eight_bytes_a_row(tmp_path):
    import tracemalloc

    path, count = tmp_path / "a.jsonl", 300_000
    path.write_text('{"text": "a line of the file"}\n' * count)
    tracemalloc.start()
    source = open_source(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source[count - 1] == {"text": "a line of the file"}
    assert held < 8.1 * count + 100_000
    assert peak < 25 * count + 20_000_000


def test_compressed_text_is_found_by_globs_and_known_by_its_name(tmp_path):
    for name in ("a.txt.gz", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"one\n\ntwo", mtime=0))
    source = open_source([str(tmp_path / "*.txt.gz")])
    assert [source[i] for i in range(len(source))] == ["one", "two"] * 2
    assert source.where(3) == f"{tmp_path / 'b.txt.gz'}:3"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_are_read_a_part_at_a_time(tmp_path, suffix):
    import pyarrow
    import pyarrow.parquet

    path, groups, size = tmp_path / f"a.{suffix}", 16, 1 << 20
    table = pyarrow.table({"text": [f"{i:04d}" + "x" * (size // 64) for i in range(64 * groups)]})
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=64)
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_file(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=64)
    del table
    before = pyarrow.total_allocated_bytes()
    source = open_source(path)
    for index in range(64 * groups):
        assert source[index]["text"][:4] == f"{index:04d}"
        assert pyarrow.total_allocated_bytes() - before < 6 * size
