"""Adapted Dense and EinsumDense layers against the paper's formula, written out in NumPy."""

import keras
import numpy as np
import pytest
from adapted_models import as_numpy

from kerora.adapters import AdapterError, LoraConfig, add_adapter
from kerora.adapters.factorization import factorize
from kerora.adapters.host import get_adapter, is_host

# Equation: (input shape, `output_shape`, axes of the kernel as "batch|contracted|output").
EQUATIONS = {
    "btd,ndh->btnh": ((2, 3, 8), (None, 4, 5), "|d|nh"),
    "bsd,kdh->bskh": ((2, 3, 8), (None, 2, 5), "|d|kh"),
    "bsd,qdh->bsqh": ((2, 3, 8), (None, 2, 5), "|d|qh"),
    "btnh,nhd->btd": ((2, 3, 4, 5), (None, 8), "|nh|d"),
    "btd,df->btf": ((2, 3, 8), (None, 7), "|d|f"),
    "btf,fd->btd": ((2, 3, 8), (None, 7), "|f|d"),
    "btd,dnh->btnh": ((2, 3, 8), (None, 4, 5), "|d|nh"),
    "bsd,dkh->bskh": ((2, 3, 8), (None, 4, 5), "|d|kh"),
    "bqm,muh->bquh": ((2, 3, 8), (None, 4, 5), "|m|uh"),
    "bkm,mvh->bkvh": ((2, 3, 8), (None, 4, 5), "|m|vh"),
    "bquh,uhm->bqm": ((2, 3, 4, 5), (None, 8), "|uh|m"),
    "bqm,mnh->bqnh": ((2, 3, 8), (None, 4, 5), "|m|nh"),
    "bkm,mnh->bknh": ((2, 3, 8), (None, 4, 5), "|m|nh"),
    "btm,mnh->btnh": ((2, 3, 8), (None, 4, 5), "|m|nh"),
    "bsm,mnh->bsnh": ((2, 3, 8), (None, 4, 5), "|m|nh"),
    "abc,cde->abde": ((2, 3, 8), (None, 4, 5), "|c|de"),
    "abcd,cde->abe": ((2, 3, 4, 5), (None, 8), "|cd|e"),
    "abc,cd->abd": ((2, 3, 8), (None, 7), "|c|d"),
    "ibh,hnd->ibnd": ((2, 3, 8), (None, 4, 5), "|h|nd"),
    "ibnd,hnd->ibh": ((2, 3, 4, 5), (None, 8), "|nd|h"),
    "abc,cdef->abdef": ((2, 3, 8), (None, 3, 2, 4), "|c|def"),
    "...x,xy->...y": ((2, 3, 8), 7, "|x|y"),
    "...nh,nhd->...d": ((2, 3, 4, 5), 8, "|nh|d"),
    "abc,acd->abd": ((3, 2, 8), (2, 7), "a|c|d"),
    "abc,bcd->abd": ((2, 3, 8), (3, 7), "b|c|d"),
}
RANK, ALPHA = 2, 6.0


def _adapted(layer, inputs, **config):
    outputs = layer(inputs)
    model = keras.Sequential([keras.Input(batch_shape=inputs.shape), layer])
    add_adapter(model, LoraConfig(rank=RANK, alpha=ALPHA, targets="all-linear", **config))
    return model, as_numpy(outputs)


def _random_factors(adapter):
    rng = np.random.default_rng(1)
    for variable in adapter.weights:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return [as_numpy(v) for v in (adapter.kernel_a, adapter.kernel_b)]


def _delta_by_paper(a, b, batch, contracted, output, kernel_axes):
    """`A·B` as matrices, one for each index of the batch axes, laid out as the kernel is."""
    batch_shape = a.shape[: len(batch)]
    flat_a = a.reshape(*batch_shape, -1, RANK)
    flat_b = b.reshape(*batch_shape, RANK, -1)
    axes = batch + contracted + output
    shape = (*a.shape[:-1], *b.shape[len(batch) + 1 :])
    delta = (flat_a @ flat_b).reshape(shape)
    return delta.transpose([axes.index(axis) for axis in kernel_axes])


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_dense_equals_the_paper_and_a_merged_kernel(equation):
    shape, output_shape, split = EQUATIONS[equation]
    batch, contracted, output = split.split("|")
    bias_axes = output
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = keras.layers.EinsumDense(
        equation,
        output_shape=output_shape,
        bias_axes=bias_axes,
        activation="gelu",
        bias_initializer="glorot_normal" if len(output) > 1 else "ones",
    )
    model, before = _adapted(layer, x)
    kernel = as_numpy(layer.kernel)
    assert np.array_equal(as_numpy(model(x)), before)

    a, b = _random_factors(get_adapter(layer, "default"))
    assert a.shape[-1] == RANK and b.shape[len(batch)] == RANK
    kernel_axes = equation.split("->")[0].split(",")[1]
    delta = _delta_by_paper(a, b, batch, contracted, output, kernel_axes)
    pre_activation = np.einsum(equation, x, kernel) + (ALPHA / RANK) * np.einsum(equation, x, delta)
    pre_activation = pre_activation + as_numpy(layer.bias)
    expected = as_numpy(keras.activations.gelu(pre_activation))
    np.testing.assert_allclose(as_numpy(model(x)), expected, rtol=2e-4, atol=2e-5)

    merged = keras.layers.EinsumDense(
        equation, output_shape=output_shape, bias_axes=bias_axes, activation="gelu"
    )
    merged.build(shape)
    merged.kernel.assign(kernel + (ALPHA / RANK) * delta)
    merged.bias.assign(layer.bias)
    np.testing.assert_allclose(as_numpy(model(x)), as_numpy(merged(x)), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", keras.layers.ReLU()])
def test_dense_adds_the_delta_before_its_activation(activation):
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    layer = keras.layers.Dense(6, activation=activation, bias_initializer="ones")
    model, _ = _adapted(layer, x)
    a, b = _random_factors(get_adapter(layer, "default"))
    linear = x @ as_numpy(layer.kernel) + 1 + 3 * (x @ a) @ b
    act = {None: lambda v: v, "tanh": np.tanh}.get(activation, lambda v: np.maximum(v, 0))
    np.testing.assert_allclose(as_numpy(model(x)), act(linear), rtol=1e-4, atol=1e-5)
    assert layer.activation is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed_bfloat16"])
def test_factors_are_float32_and_leave_the_output_type_alone(dtype):
    x = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")
    layer = keras.layers.Dense(6, dtype=dtype)
    _model, before = _adapted(layer, x)
    assert {v.dtype for v in get_adapter(layer, "default").weights} == {"float32"}
    after = layer(x)
    assert keras.backend.standardize_dtype(after.dtype) == layer.compute_dtype
    assert np.array_equal(as_numpy(after), before)


def test_a_starts_uniform_in_one_over_the_root_of_the_fan_in_and_b_at_zero():
    layer = keras.layers.EinsumDense("btnh,nhd->btd", output_shape=(None, 50))
    _adapted(layer, np.zeros((1, 2, 10, 40), "float32"))
    adapter = get_adapter(layer, "default")
    a = as_numpy(adapter.kernel_a)
    assert abs(a).max() <= 400**-0.5 and abs(a).max() > 0.9 * 400**-0.5
    assert abs(a.mean()) < 0.1 * 400**-0.5
    assert not np.any(as_numpy(adapter.kernel_b))


def test_the_seed_fixes_a():
    x = np.zeros((1, 8), "float32")

    def factor():
        keras.utils.set_random_seed(7)
        layer = keras.layers.Dense(6)
        _adapted(layer, x)
        return as_numpy(get_adapter(layer, "default").kernel_a)

    assert np.array_equal(factor(), factor())


def test_dropout_acts_in_training_alone_and_keeps_the_mean():
    x = np.ones((2000, 8), "float32")
    layer = keras.layers.Dense(3)
    model, _ = _adapted(layer, x, dropout=0.5)
    _random_factors(get_adapter(layer, "default"))
    plain = as_numpy(model(x, training=False))
    noisy = as_numpy(model(x, training=True))
    assert np.ptp(plain, axis=0).max() < 1e-5
    assert np.ptp(noisy, axis=0).min() > 0.1
    spread = noisy.std(axis=0) / 2000**0.5
    assert np.all(abs(noisy.mean(axis=0) - plain[0]) < 5 * spread)
    again = as_numpy(model(x, training=True))
    assert not np.array_equal(noisy, again)


def test_a_rank_above_the_kernels_own():
    x = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")
    layer = keras.layers.Dense(1)
    model, before = _adapted(layer, x)
    a, b = _random_factors(get_adapter(layer, "default"))
    assert a.shape == (8, RANK) and RANK > 1
    np.testing.assert_allclose(as_numpy(model(x)), before + x @ a @ b * ALPHA / RANK, rtol=1e-5)


def test_an_equation_that_contracts_nothing_is_an_error():
    with pytest.raises(AdapterError, match="contracted"):
        factorize("btd,d->btd", (8,), rank=1)


def test_layers_that_cannot_hold_an_adapter_say_why():
    def refuses(layer, words, build=True):
        model = keras.Sequential([keras.Input((8,)), layer] if build else [layer])
        with pytest.raises(AdapterError, match=words):
            add_adapter(model, LoraConfig(rank=2, targets="all-linear"))
        assert not is_host(layer)

    refuses(keras.layers.Dense(4, kernel_constraint="non_neg"), "kernel_constraint")
    refuses(keras.layers.Dense(4), "no kernel yet", build=False)
    refuses(keras.layers.Dense(4, lora_rank=2), "Keras' own LoRA")
    refuses(keras.layers.Conv1D(4, 1), "found no Dense or EinsumDense", build=False)


def test_copies_from_a_config_are_the_base_layer():
    x = np.ones((2, 8), "float32")
    layer = keras.layers.Dense(4, activation="relu")
    _model, before = _adapted(layer, x)
    twin = type(layer).from_config(layer.get_config())
    assert type(twin) is keras.layers.Dense and twin.activation is keras.activations.relu
    assert twin(x).shape == before.shape
    serialised = keras.saving.serialize_keras_object(layer)
    assert type(keras.saving.deserialize_keras_object(serialised)) is keras.layers.Dense
    clone = keras.models.clone_model(keras.Sequential([keras.Input((8,)), layer]))
    assert type(clone.layers[0]) is keras.layers.Dense
    assert not is_host(clone.layers[0])
