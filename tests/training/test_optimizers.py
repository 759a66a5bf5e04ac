"""Optax transformations as Keras optimizers."""

import keras
import numpy as np
import pytest

from kerora.training.optimizers import Optax

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="optax runs on JAX alone")
STEPS = 6


def _data():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(STEPS * 4, 5)).astype("float32"),
        rng.normal(size=(STEPS * 4, 3)).astype("float32"),
    )


def _model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(7, activation="tanh", name="inner"),
            keras.layers.Dense(3, name="outer"),
        ],
        name="net",
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def _fit(optimizer):
    model = _model(optimizer)
    model.fit(*_data(), batch_size=4, shuffle=False, verbose=0)
    return model


def _plain_loop(transformation):
    """The same training, written in JAX and optax alone."""
    import jax
    import jax.numpy as jnp
    import optax

    model = _model("sgd")
    params = {v.path: jnp.array(v.value) for v in model.trainable_variables}

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["net/inner/kernel"] + params["net/inner/bias"])
        predicted = hidden @ params["net/outer/kernel"] + params["net/outer/bias"]
        return jnp.mean((predicted - y) ** 2)

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    x, y = _data()
    for start in range(0, len(x), 4):
        params, state = step(params, state, x[start : start + 4], y[start : start + 4])
    return params, state


def _transformations():
    import optax

    schedule = optax.cosine_decay_schedule(1e-1, STEPS)
    return {
        "sgd": optax.sgd(0.1),
        "adam": optax.adam(0.01),
        "chain": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(schedule)),
        "multi_steps": optax.MultiSteps(optax.adam(0.01), every_k_schedule=3),
        "masked": optax.masked(optax.adam(0.01), lambda params: {k: "inner" in k for k in params}),
        "by_label": optax.multi_transform(
            {"slow": optax.sgd(0.001), "fast": optax.adam(0.1)},
            lambda params: {k: "slow" if "bias" in k else "fast" for k in params},
        ),
        "injected": optax.inject_hyperparams(optax.adam)(learning_rate=schedule),
        "noise": optax.chain(optax.add_noise(0.1, 0.5, 7), optax.sgd(0.1)),
        "finite": optax.apply_if_finite(optax.adam(0.01), 3),
        "extra_args": optax.with_extra_args_support(optax.lion(0.01)),
        "adafactor": optax.adafactor(0.01),
        "schedule_free": optax.contrib.schedule_free_adamw(0.01),
    }


NAMES = [
    "sgd", "adam", "chain", "multi_steps", "masked", "by_label", "injected", "noise", "finite",
    "extra_args", "adafactor", "schedule_free",
]  # fmt: skip


@on_jax
@pytest.mark.parametrize("name", NAMES)
def test_fit_does_what_a_plain_optax_loop_does(name):
    import jax

    transformation = _transformations()[name]
    model = _fit(Optax(transformation))
    params, state = _plain_loop(transformation)
    for variable in model.trainable_variables:
        np.testing.assert_allclose(variable.numpy(), params[variable.path], rtol=2e-6, atol=1e-7)
    leaves = jax.tree.leaves(state)
    held = model.optimizer.variables[1:]
    assert len(held) == len(leaves)
    for variable, leaf in zip(held, leaves, strict=True):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        assert variable.dtype == str(leaf.dtype)
        np.testing.assert_allclose(variable.numpy(), leaf, rtol=2e-5, atol=1e-7)


@on_jax
def test_adam_agrees_with_that_of_keras():
    import optax

    # Their epsilons stand in different places; without them the updates are the same.
    ours = _fit(Optax(optax.adam(0.01, eps=1e-14)))
    keras_own = _fit(keras.optimizers.Adam(0.01, epsilon=1e-14))
    for a, b in zip(ours.trainable_variables, keras_own.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6)


@on_jax
def test_accumulation_by_keras_and_by_optax_agree():
    import optax

    by_keras = _fit(Optax(optax.adam(0.01), gradient_accumulation_steps=3))
    by_optax = _fit(Optax(optax.MultiSteps(optax.adam(0.01), 3)))
    for a, b in zip(by_keras.trainable_variables, by_optax.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


@on_jax
def test_the_learning_rate_is_what_was_given():
    import optax

    schedule = optax.linear_schedule(1.0, 0.0, 10)
    optimizer = _fit(Optax(optax.sgd(schedule), learning_rate=schedule)).optimizer
    assert float(optimizer.learning_rate) == pytest.approx(1 - STEPS / 10)
    assert float(Optax(optax.sgd(0.1), learning_rate=0.1).learning_rate) == 0.1
    assert np.isnan(Optax(optax.sgd(0.1)).learning_rate)


@on_jax
def test_a_transformation_that_needs_the_loss_says_so():
    import optax

    with pytest.raises(ValueError, match=r"needs more than gradients and parameters.*value"):
        _fit(Optax(optax.polyak_sgd()))


@on_jax
def test_its_config_makes_it_again_in_this_process():
    import optax

    optimizer = Optax(optax.adam(0.01), learning_rate=0.01)
    again = Optax.from_config(optimizer.get_config())
    for a, b in zip(
        _fit(optimizer).trainable_variables, _fit(again).trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@on_jax
def test_a_saved_model_loads_without_it(tmp_path):
    import optax

    model = _fit(Optax(optax.adam(0.01)))
    with pytest.warns(UserWarning, match="compile=False"):
        model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="compile=False"):
        keras.models.load_model(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


@on_jax
def test_weights_files_hold_its_state(tmp_path):
    import optax

    model = _fit(Optax(optax.adam(0.01)))
    model.save_weights(tmp_path / "a.weights.h5")
    other = _model(Optax(optax.adam(0.01)))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "a.weights.h5")
    for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_what_is_no_transformation_is_refused():
    with pytest.raises(ValueError, match="optax"):
        Optax("adam")


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="says what happens elsewhere")
def test_another_backend_refuses_it():
    import optax

    with pytest.raises(ValueError, match="JAX"):
        Optax(optax.adam(0.01))
