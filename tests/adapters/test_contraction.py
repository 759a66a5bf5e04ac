"""The cheaper product is chosen, and the compiled step costs what the count says."""

import re

import keras
import numpy as np
import pytest
from adapted_models import as_numpy

from kerora.adapters import LoraConfig, add_adapter
from kerora.adapters.contraction import factored_cost, merged_cost, merging_is_cheaper
from kerora.adapters.host import get_adapter

ROWS, LENGTH, WIDTH, HEADS, HEAD_WIDTH = 3, 128, 256, 8, 64
TOKENS, FAN_OUT = ROWS * LENGTH, HEADS * HEAD_WIDTH
SHAPES = {
    "btd,ndh->btnh": ((ROWS, LENGTH, WIDTH), (None, HEADS, HEAD_WIDTH)),
    "btnh,nhd->btd": ((ROWS, LENGTH, HEADS, HEAD_WIDTH), (None, WIDTH)),
    "btd,df->btf": ((ROWS, LENGTH, WIDTH), (None, FAN_OUT)),
    "...d,df->...f": ((ROWS, LENGTH, WIDTH), FAN_OUT),
}


def _adapted_layer(layer, shape, **config):
    model = keras.Sequential([keras.Input(batch_shape=shape), layer])
    add_adapter(model, LoraConfig(targets="all-linear", **config))
    return model


def _compiled_step(model, shape):
    """Value and gradients by the factors and the inputs, as XLA compiles them."""
    import jax

    trainable = [v.value for v in model.trainable_variables]
    frozen = [v.value for v in model.non_trainable_variables]

    def loss(trainable, x, frozen):
        outputs, _ = model.stateless_call(trainable, frozen, x)
        return (outputs * outputs).sum()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(trainable, jax.numpy.ones(shape), frozen).compile()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads XLA's cost analysis")
@pytest.mark.parametrize("rank", [4, 64, 200])
@pytest.mark.parametrize("equation", SHAPES)
def test_compiled_flops_are_the_least_of_both_ways(equation, rank):
    shape, output_shape = SHAPES[equation]
    model = _adapted_layer(keras.layers.EinsumDense(equation, output_shape), shape, rank=rank)
    step = _compiled_step(model, shape)
    sizes = (TOKENS, WIDTH, FAN_OUT, rank)
    least = 2 * min(factored_cost(*sizes), merged_cost(*sizes))
    assert least <= step.cost_analysis()["flops"] < 1.02 * least
    # Forward three, or two with the delta; backward five, or four: one dot for each product.
    products = len(re.findall(r"= \S+ dot\(|custom-call\([^\n]*matmul", step.as_text()))
    assert products == (8 if factored_cost(*sizes) < merged_cost(*sizes) else 6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads XLA's program")
def test_the_compiled_step_never_holds_the_delta_at_usual_ranks():
    shape, output_shape = SHAPES["btd,df->btf"]
    layer = keras.layers.EinsumDense("btd,df->btf", output_shape)
    text = _compiled_step(_adapted_layer(layer, shape, rank=16), shape).as_text()
    kernel_sized = re.findall(rf"= f32\[(?:{WIDTH},{FAN_OUT}|{FAN_OUT},{WIDTH})\]\S* (\S+)\(", text)
    assert set(kernel_sized) <= {"parameter", "copy", "transpose", "bitcast"}


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dense(24, activation="tanh", bias_initializer="ones"),
        keras.layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="de", activation="relu"),
    ],
)
def test_both_ways_agree(layer, monkeypatch):
    shape = (4, 50, 16)
    model = _adapted_layer(layer, shape, rank=8, alpha=4)
    adapter = get_adapter(layer, "default")
    rng = np.random.default_rng(0)
    for variable in adapter.weights:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    x = rng.normal(size=shape).astype("float32")
    assert merging_is_cheaper(layer, [adapter], keras.ops.convert_to_tensor(x))
    merged, kernel = as_numpy(model(x)), layer._kernel
    monkeypatch.setattr("kerora.adapters.host.merging_is_cheaper", lambda *_: False)
    np.testing.assert_allclose(as_numpy(model(x)), merged, rtol=1e-4, atol=1e-5)
    assert layer._kernel is kernel and isinstance(kernel, keras.Variable)


@pytest.mark.parametrize(
    "changed", [{"dtype": "bfloat16"}, {"dropout": 0.1}, {"quantize": "int8"}, {"rank": 2}, {}]
)
def test_merging_only_where_it_means_the_same(changed):
    layer = keras.layers.Dense(24, dtype=changed.get("dtype", "float32"))
    x = keras.ops.ones((4, 50, 16))
    layer(x)
    if "quantize" in changed:
        layer.quantize(changed["quantize"])
    config = {"rank": changed.get("rank", 8), "dropout": changed.get("dropout", 0.0)}
    _adapted_layer(layer, x.shape, **config)
    assert merging_is_cheaper(layer, [get_adapter(layer, "default")], x) == (changed == {})


def test_unknown_sizes_stay_factored():
    layer = keras.layers.Dense(24)
    _adapted_layer(layer, (None, 50, 16), rank=8)
    inputs = keras.KerasTensor((None, 50, 16))
    assert not merging_is_cheaper(layer, [get_adapter(layer, "default")], inputs)
