"""A warning shows the line of the user's program that led to it."""

import inspect
import threading

import keras
import pytest

import kerora
from kerora.user_warning import warn_user


def line_of(caught, message):
    (shown,) = [warning for warning in caught if message in str(warning.message)]
    return shown.filename, shown.lineno


def test_fit_below_its_decorator_and_keras(monkeypatch):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: None)
    with pytest.warns(UserWarning) as caught:
        here = inspect.currentframe().f_lineno + 1
        model.fit([("a", ""), ("a", "b")], on_bad_row="skip", sequence_length=16)
    assert line_of(caught, "parameters train") == (__file__, here)
    assert line_of(caught, "rows skipped") == (__file__, here)


def test_a_function_that_keras_calls():
    optax = pytest.importorskip("optax")
    if keras.backend.backend() != "jax":
        pytest.skip("optax is for JAX")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=kerora.optimizers.Optax(optax.sgd(0.1)), loss="mse")
    with pytest.warns(UserWarning) as caught:
        here = inspect.currentframe().f_lineno + 1
        model.get_compile_config()
    assert line_of(caught, "Python functions") == (__file__, here)


def test_a_thread_of_the_package_has_no_line_of_the_user():
    inner = {"__name__": "kerora.inner", "warn_user": warn_user}
    exec(compile("def work():\n    warn_user('lost')", "inner.py", "exec"), inner)
    with pytest.warns(UserWarning, match="lost"):
        thread = threading.Thread(target=inner["work"])
        thread.start()
        thread.join()
