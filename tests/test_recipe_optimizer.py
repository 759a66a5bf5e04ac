"""Optimizers and schedules of recipes, against their formulas."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from kerora.recipe import OptimizerRecipe, Recipe
from kerora.recipe_optimizer import WarmupSchedule, make_optimizer, peak_learning_rate

NAMES = ("adamw", "adam", "sgd", "lion", "adafactor", "muon")


def rate(schedule, step):
    return float(keras.ops.convert_to_numpy(schedule(step)))


def test_cosine_rises_and_falls():
    schedule = WarmupSchedule(1e-3, steps=100, warmup=10)
    for step in range(10):
        assert math.isclose(rate(schedule, step), 1e-3 * (step + 1) / 10, rel_tol=1e-5)
    for step in range(10, 100):
        expected = 0.5e-3 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert math.isclose(rate(schedule, step), expected, rel_tol=1e-3)
    assert rate(schedule, 99) > 0


def test_linear_and_constant():
    linear = WarmupSchedule(1.0, steps=10, warmup=0, shape="linear")
    np.testing.assert_allclose([rate(linear, s) for s in range(10)], 1 - np.arange(10) / 10, 1e-5)
    constant = WarmupSchedule(1.0, steps=10, warmup=2, shape="constant")
    np.testing.assert_allclose([rate(constant, s) for s in range(10)], [0.5] + [1.0] * 9)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_trains_and_leaves_biases_undecayed(name):
    keras.utils.set_random_seed(0)
    recipe = OptimizerRecipe(
        name=name, learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup=0.0
    )
    layer = keras.layers.Dense(4)
    layer.build((None, 3))
    layer.bias.assign(np.ones(4, "float32"))
    before = keras.ops.convert_to_numpy(layer.kernel)
    optimizer = make_optimizer(recipe, 0.1, steps=10)
    optimizer.build(layer.trainable_variables)
    zeros = [keras.ops.zeros(v.shape) for v in layer.trainable_variables]
    optimizer.apply(zeros, layer.trainable_variables)
    # A zero gradient leaves the decay alone: w - rate · decay · w.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.kernel), 0.95 * before, 1e-5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.bias), 1.0)


def test_the_schedule_counts_batches_also_where_several_make_an_update():
    recipe = OptimizerRecipe(schedule="linear", warmup=0.0, gradient_accumulation=2)
    optimizer = make_optimizer(recipe, 1.0, steps=10)
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer.build([variable])
    rates = []
    for _ in range(10):
        rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
        optimizer.apply([keras.ops.ones((2,))], [variable])
    np.testing.assert_allclose(rates, 1 - np.arange(10) / 10, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "steps", "expected"),
    [
        ({}, 16, 5e-4 * 2),
        ({}, 1000, 5e-4),
        ({"adapter": "none"}, 16, 2e-5 * 2),
        ({"optimizer": {"gradient_accumulation": 8}}, 16, 5e-4 * 4),
        ({"optimizer": {"learning_rate": 0.3}}, 16, 0.3),
    ],
)
def test_the_default_rate_is_by_what_trains_and_the_number_of_updates(changes, steps, expected):
    recipe = Recipe(
        model={"source": "tiny_gemma"}, data={"train": "tiny_gemma/train.jsonl"}, **changes
    )
    assert peak_learning_rate(recipe, steps) == pytest.approx(expected)
