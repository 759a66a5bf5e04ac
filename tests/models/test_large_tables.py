"""Loading in real processes: the peak of memory, and the values."""

import json
import subprocess
import sys

import keras
import ml_dtypes  # noqa: F401 - so that NumPy knows bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file

LOAD = """
import json, sys
import numpy as np
import keras
import kerora

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

kerora.from_preset(sys.argv[2], preprocessor=None)  # what the first load of a process costs
before = peak()
model = kerora.from_preset(sys.argv[1], preprocessor=None)
grown = peak() - before
table = keras.ops.convert_to_numpy(model.backbone.token_embedding.embeddings)
np.save(sys.argv[3], table)
weights = sum(4 * int(np.prod(w.shape)) for w in model.weights)
print(json.dumps({"grown": grown, "weights": weights}))
"""


def write_model(folder, vocabulary):
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="its variables take new values as a whole"
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_load_never_holds_the_table_twice(tmp_path):
    write_model(tmp_path / "large", 600_000)
    write_model(tmp_path / "small", 1_000)
    arguments = [tmp_path / "large", tmp_path / "small", tmp_path / "table.npy"]
    output = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert found["weights"] > 300e6
    assert found["grown"] < 1.5 * found["weights"]
    stored = load_file(tmp_path / "large" / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(np.load(tmp_path / "table.npy"), stored.astype("float32"))
