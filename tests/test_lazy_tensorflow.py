"""TensorFlow stays unimported on the other backends until something of it is used."""

import os
import subprocess
import sys

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="the backend is TensorFlow itself"
)

TRAIN = """
import sys
import kerora
model = kerora.from_preset("tiny_gemma")
model.backbone.enable_lora(2)
model.fit(["The cat sat."] * 8, sequence_length=16, verbose=0)
model.save_adapter(sys.argv[1])
model.generate("The cat", max_length=6)
assert "tensorflow" not in sys.modules and "tensorflow_text" not in sys.modules
"""
PIPELINE = """
import kerora, keras_hub, sys
model = keras_hub.models.CausalLM.from_preset(str(kerora.bundled_path("tiny_gemma")))
preprocessor = model.preprocessor
preprocessor.sequence_length = 8
plain, *_ = preprocessor(["The cat sat."])
import tensorflow as tf
assert tf.__version__ and tf.data.AUTOTUNE == -1
data = tf.data.Dataset.from_tensor_slices(["The cat sat."]).batch(1).map(preprocessor)
piped, *_ = next(iter(data))
assert isinstance(piped["token_ids"], tf.Tensor)
print(plain["token_ids"].tolist() == piped["token_ids"].numpy().tolist())
words = keras_hub.tokenizers.BytePairTokenizer(
    vocabulary={"a": 0, "b": 1, "ab": 2, "c": 3}, merges=["a b"], dtype="int32"
)
print([row.numpy().tolist() for row in tf.data.Dataset.from_tensor_slices(["abc"]).map(words)])
pieces = keras_hub.tokenizers.compute_word_piece_vocabulary(
    tf.data.Dataset.from_tensor_slices(["bat sat pat"] * 4), 20
)
print(sorted(pieces)[:3])
"""
LATER = """
import sys
import kerora, keras, keras_hub
finders = len(sys.meta_path)
for seed in (3, 7):
    keras.utils.set_random_seed(seed)
assert len(sys.meta_path) == finders + 1
assert "tensorflow" not in sys.modules
words = keras_hub.tokenizers.WordPieceTokenizer(["[UNK]", "a", "##b"], dtype="int32")
pieces = keras_hub.models.CausalLM.from_preset(
    str(kerora.bundled_path("tiny_gemma"))
).preprocessor.tokenizer
import tensorflow as tf
seeded = tf.random.uniform([]).numpy()
texts = tf.data.Dataset.from_tensor_slices(["ab"])
print([row.numpy().tolist() for row in texts.map(words)])
print([row.numpy().tolist() for row in texts.map(pieces)] == [pieces("ab").tolist()])
tf.random.set_seed(7)
print(seeded == tf.random.uniform([]).numpy())
"""


def run(code, *arguments):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()


def test_training_and_generating_need_no_tensorflow(tmp_path):
    run(TRAIN, str(tmp_path / "adapter"))


def test_tensorflow_pipelines_work_as_ever():
    assert run(PIPELINE) == ["True", "[[2, 3]]", "['##a', '##at', '##b']"]


def test_what_was_done_before_tensorflow_is_imported_holds_after_it():
    assert run(LATER) == ["[[1, 2]]", "True", "True"]
