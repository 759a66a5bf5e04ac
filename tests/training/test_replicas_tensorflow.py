"""Replicas of TensorFlow's `MirroredStrategy` give what one device gives."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow alone has `tf.distribute`", allow_module_level=True)

TRAIN = """
import json
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, keras_hub
import kerora
from data.byte_tokenizer import ByteTokenizer, texts
from kerora.data import make_batches
from tiny_backbones import tiny_backbone

def train(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        backbone = tiny_backbone("gemma", vocabulary_size=272, num_layers=1)
        model = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
        model.backbone.enable_lora(2)
        model.compile(
            keras.optimizers.SGD(0.02),
            loss=kerora.losses.TokenLoss(z_loss=1e-3),
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        )
    model.report_steps()
    # Rows of unlike lengths: one replica has more tokens than the other.
    batches = make_batches(
        texts(8), ByteTokenizer(), sequence_length=128, batch_size=4, packing=False, seed=3
    )
    history = model.fit(batches, epochs=2, verbose=0).history
    scores = model.evaluate(batches, verbose=0, return_dict=True)
    values = [keras.ops.convert_to_numpy(value).tolist() for value in model.trainable_variables]
    return history, scores, values

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([train(one), train(two)]))
"""


def test_they_learn_what_one_device_learns():
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (history, scores, values), of_two = json.loads(done.stdout.splitlines()[-1])
    assert history["loss"][1] < history["loss"][0]
    for measured, expected in ((of_two[0], history), (of_two[1], scores)):
        assert set(measured) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name], value, rtol=2e-5, err_msg=name)
    for value, expected in zip(of_two[2], values, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-6)
