"""Adapted embeddings: lookup and tied logits agree with one merged table."""

import keras
import keras_hub
import numpy as np
import pytest
from adapted_models import as_numpy

from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.adapters.host import get_adapter

IDS = np.array([[1, 5, 3], [0, 5, 2]], "int32")
SCALE = 4.0


class Holder(keras.Model):
    """A model that holds one embedding."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.embedding(IDS)
        self.built = True

    def call(self, inputs):
        return self.embedding(inputs)


def _adapted(embedding, fill=True, **config):
    model = Holder(embedding)
    add_adapter(model, LoraConfig(rank=2, alpha=8, targets=embedding.name, **config))
    adapter = get_adapter(embedding, "default")
    if fill:
        rng = np.random.default_rng(0)
        for variable in adapter.weights:
            variable.assign(rng.normal(size=variable.shape).astype("float32"))
    a, b = (as_numpy(v) for v in (adapter.kernel_a, adapter.kernel_b))
    return model, a, b


def _hidden(width=4):
    return np.random.default_rng(3).normal(size=(2, 3, width)).astype("float32")


def _merged_twin(embedding, a, b):
    twin = keras.layers.ReversibleEmbedding.from_config(embedding.get_config())
    twin.build()
    twin.embeddings.assign(as_numpy(embedding.embeddings) + SCALE * (a @ b))
    if not embedding.tie_weights:
        twin.reverse_embeddings.assign(embedding.reverse_embeddings)
    return twin


@pytest.mark.parametrize("width", [4, 1])  # 1: less than the rank
def test_embedding_lookup_equals_a_merged_table(width):
    embedding = keras.layers.Embedding(7, width)
    model, a, b = _adapted(embedding)
    table = as_numpy(embedding.embeddings) + SCALE * (a @ b)
    np.testing.assert_allclose(as_numpy(model(IDS)), table[IDS], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer_class", ["keras", "keras_hub"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_reversible_embedding_equals_a_merged_table_both_ways(layer_class, tied, cap):
    kind = {"keras": keras.layers, "keras_hub": keras_hub.layers}[layer_class].ReversibleEmbedding
    embedding = kind(7, 4, tie_weights=tied, logit_soft_cap=cap)
    _, a, b = _adapted(embedding)
    twin = _merged_twin(embedding, a, b)
    np.testing.assert_allclose(as_numpy(embedding(IDS)), as_numpy(twin(IDS)), rtol=1e-5, atol=1e-5)
    got, expected = (as_numpy(layer(_hidden(), reverse=True)) for layer in (embedding, twin))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert embedding.logit_soft_cap == cap


def test_reverse_dtype_of_a_bfloat16_table():
    embedding = keras.layers.ReversibleEmbedding(
        7, 4, dtype="bfloat16", reverse_dtype="float32", logit_soft_cap=5.0
    )
    _, a, b = _adapted(embedding)
    raw = embedding(_hidden(), reverse=True)
    assert keras.backend.standardize_dtype(raw.dtype) == "float32"
    hidden, a, b = (_in_bfloat16(values) for values in (_hidden(), a, b))
    table = as_numpy(embedding.embeddings) + SCALE * (a @ b)
    # Each product of the adapter and their sum is rounded once, by at most 2**-8 of its value.
    bound = 3 * 2**-8 * SCALE * abs(hidden) @ abs(b.T) @ abs(a.T)
    assert (abs(as_numpy(raw) - 5.0 * np.tanh(hidden @ table.T / 5.0)) <= bound).all()


def _in_bfloat16(values):
    return as_numpy(keras.ops.cast(values, "bfloat16"))


@pytest.mark.parametrize("reverse", [False, True])
def test_first_pass_equals_the_base_to_the_bit(reverse):
    embedding = keras.layers.ReversibleEmbedding(7, 4, logit_soft_cap=2.0)
    inputs = _hidden() if reverse else IDS
    before = as_numpy(embedding(inputs, reverse=reverse))
    _adapted(embedding, fill=False)
    assert np.array_equal(as_numpy(embedding(inputs, reverse=reverse)), before)


@pytest.mark.parametrize("kind", [keras.layers.Embedding, keras.layers.ReversibleEmbedding])
def test_padding_mask_survives(kind):
    embedding = kind(7, 4, mask_zero=True)
    before = as_numpy(embedding(IDS)._keras_mask)
    _adapted(embedding)
    assert np.array_equal(as_numpy(embedding(IDS)._keras_mask), before)
    assert not before.all()


def test_dropout_acts_on_the_rows_of_a_in_training_alone():
    embedding = keras.layers.Embedding(7, 4)
    model, a, b = _adapted(embedding, dropout=0.5)
    table = as_numpy(embedding.embeddings)
    np.testing.assert_allclose(
        as_numpy(model(IDS)), (table + SCALE * (a @ b))[IDS], rtol=1e-5, atol=1e-5
    )
    noisy = as_numpy(model(np.zeros((1, 500), "int32"), training=True))[0]
    assert len(np.unique(noisy.round(4), axis=0)) == 4


def test_constraint_is_refused():
    embedding = keras.layers.Embedding(7, 4, embeddings_constraint="non_neg")
    with pytest.raises(AdapterError, match="embeddings_constraint"):
        _adapted(embedding)
