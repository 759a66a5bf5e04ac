"""Adapted layers that several threads call at once: each is given what it is given alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from adapted_models import as_numpy, fill_factors
from more_backbones import MORE_BACKBONES

from kerora.adapters import LoraConfig, add_adapter

THREADS = 3
PATIENCE = 60.0  # seconds, for a thread that failed and does not come


class Meeting:
    """A place in a layer's own call that no thread leaves before all are there, once it is held."""

    def __init__(self):
        self.held = False
        self._barrier = threading.Barrier(THREADS)

    def wait(self):
        if self.held:
            self._barrier.wait(PATIENCE)


def meeting_in(base, **arguments):
    """A layer whose own call holds a meeting before it reads what it computes with."""
    meeting = Meeting()

    class Waiting(base):
        def call(self, inputs, **kwargs):
            meeting.wait()
            return super().call(inputs, **kwargs)

    return Waiting(**arguments), meeting


def assert_same_in_threads(call, meeting):
    alone = as_numpy(call())
    meeting.held = True
    with ThreadPoolExecutor(THREADS) as pool:
        together = [pool.submit(lambda: as_numpy(call())) for _ in range(THREADS)]
    for each in together:
        np.testing.assert_array_equal(each.result(), alone)
    meeting.held = False
    np.testing.assert_array_equal(as_numpy(call()), alone)


def add_random_adapter(model, rank, targets):
    add_adapter(model, LoraConfig(rank=rank, targets=targets))
    fill_factors(model)


@pytest.mark.parametrize("rank", [1, 8])  # 8: the kernel is merged for the call
def test_a_dense_layer_with_an_activation(rank):
    layer, meeting = meeting_in(keras.layers.Dense, units=8, activation="tanh")
    inputs = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    add_random_adapter(keras.Sequential([keras.Input((8,)), layer]), rank, "all-linear")
    assert_same_in_threads(lambda: layer(inputs), meeting)


def test_a_head_with_a_soft_cap():
    layer, meeting = meeting_in(
        keras.layers.ReversibleEmbedding, input_dim=9, output_dim=4, logit_soft_cap=0.5
    )
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer])
    add_random_adapter(model, 2, layer.name)
    assert_same_in_threads(lambda: layer(hidden, reverse=True), meeting)


def test_the_feedforward_layers_of_a_gemma4_block():
    backbone = MORE_BACKBONES["gemma4"]()
    add_random_adapter(backbone, 2, "ffw_gating")
    block, meeting = backbone.transformer_layers[0], Meeting()
    norm = block.pre_ffw_norm
    own_call = norm.call

    def call(*args, **kwargs):
        meeting.wait()
        return own_call(*args, **kwargs)

    norm.call = call
    hidden = np.random.default_rng(0).normal(size=(2, 4, backbone.hidden_dim)).astype("float32")
    mask = np.ones((2, 4), "int32")
    assert_same_in_threads(lambda: block(hidden, padding_mask=mask)[0], meeting)
