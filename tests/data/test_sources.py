import os
import subprocess
import sys

import numpy as np
import pandas
import pytest
from backends import once

from kerora.data.errors import DataError
from kerora.data.sources import open_source

ROWS = [{"prompt": f"q{i}", "response": f"á{i}"} for i in range(5)]


def rows_of(data):
    source = open_source(data)
    return [source[i] for i in range(len(source))]


def test_lists_dicts_and_columns():
    assert rows_of(["a", "b"]) == ["a", "b"]
    assert rows_of(np.array(["a", "b"])) == ["a", "b"]
    assert rows_of(ROWS) == ROWS
    assert rows_of({"prompts": ["a", "b"], "responses": ["c", "d"]}) == [
        {"prompts": "a", "responses": "c"},
        {"prompts": "b", "responses": "d"},
    ]
    assert rows_of({"prompt": "a", "response": "b"}) == [{"prompt": "a", "response": "b"}]
    assert rows_of(pandas.DataFrame(ROWS)) == ROWS


@pytest.mark.parametrize("change", [lambda t: t.sample(frac=1, random_state=0), lambda t: t[1:]])
def test_pandas_columns_go_by_position(change):
    table = change(pandas.DataFrame(ROWS))
    prompts, responses = table["prompt"].tolist(), table["response"].tolist()
    rows = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
    assert rows_of(table["prompt"]) == prompts
    for column in (table["response"], responses, np.array(responses)):
        assert rows_of({"prompt": table["prompt"], "response": column}) == rows
    assert rows_of(table) == rows


def test_one_conversation_is_one_row_and_several_are_several():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert rows_of(talk) == [talk]
    assert rows_of([talk, talk]) == [talk, talk]


def test_generators_are_read_once_and_indexed():
    source = open_source(row for row in ROWS)
    assert [source[i] for i in (4, 0, 2)] == [ROWS[4], ROWS[0], ROWS[2]]
    assert "generator" in source.where(1)


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    assert rows_of(table) == ROWS
    assert rows_of(datasets.DatasetDict({"train": table, "test": table.select([0])})) == ROWS
    assert rows_of(table.to_iterable_dataset()) == ROWS
    with pytest.raises(DataError, match=r"splits \['test'\]"):
        open_source(datasets.DatasetDict({"test": table}))


def test_tf_data_batched_or_not():
    tf = pytest.importorskip("tensorflow")
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    assert rows_of(dataset) == ROWS
    assert rows_of(dataset.batch(2)) == ROWS
    assert rows_of(tf.data.Dataset.from_tensor_slices(["a", "é"]).batch(2)) == ["a", "é"]
    with pytest.raises(DataError, match="never ends"):
        open_source(dataset.repeat())
    with pytest.raises(DataError, match="not tuples"):
        open_source(tf.data.Dataset.from_tensor_slices((["a"], ["b"])))


def test_grain_datasets():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source(ROWS)
    assert rows_of(dataset) == ROWS
    assert rows_of(dataset.to_iter_dataset()) == ROWS
    with pytest.raises(DataError, match="never ends"):
        open_source(dataset.repeat())


_TFDS_BUILDER = """
import tensorflow_datasets as tfds

class PocketQa(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"prompt": tfds.features.Text(),
                                               "response": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            yield i, {"prompt": f"q{i}", "response": f"\\u00e1{i}"}
"""

_TFDS_READ = """
from kerora.data.sources import open_source
source = open_source("tfds:pocket_qa/train")
rows = sorted((source[i]["prompt"], source[i]["response"]) for i in range(len(source)))
assert rows == [(f"q{i}", f"\\u00e1{i}") for i in range(5)], rows
assert source.where(1) == "row 1 of tfds:pocket_qa/train"
print(type(source).__name__)
"""


@once
@pytest.mark.parametrize(
    ("file_format", "kind"), [("array_record", "SequenceSource"), ("tfrecord", "SpooledSource")]
)
def test_tfds_by_name(tmp_path, file_format, kind):
    pytest.importorskip("tensorflow_datasets")
    build = f"PocketQa(data_dir={str(tmp_path)!r}, file_format={file_format!r})"
    script = f"{_TFDS_BUILDER}\n{build}.download_and_prepare()\n"
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name, code in (("build.py", script), ("read.py", _TFDS_READ)):
        (tmp_path / name).write_text(code)
        command = [sys.executable, str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == kind


def test_an_unknown_tfds_name_is_a_data_error():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="no_such_set_anywhere"):
        open_source("tfds:no_such_set_anywhere/train")
