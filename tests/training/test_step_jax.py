"""A step that fails or is stopped leaves the model its values."""

import itertools
import signal

import keras
import numpy as np
import pytest

import kerora
from kerora.training.errors import OutOfMemory

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone takes the values out of a model's variables", allow_module_level=True)

import jax

from kerora.training import replicas_jax

ROWS = ["A cat sat on the mat.", "A dog lay on the rug.", "A cow stood in the grass."] * 4


class FailingMetric(keras.metrics.Mean):
    """A metric that fails while a step is traced, as memory does while one is compiled."""

    error: BaseException
    calls = 0

    def update_state(self, *args, **kwargs):
        self.calls += 1
        if self.calls > 1:  # the first is Keras' own, ahead of the step
            raise self.error


class CutOff(keras.utils.PyDataset):
    """Batches of tokens, the ninth of which cannot be read."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 8:
            raise OSError("the disk is gone")
        return self.batch


@pytest.fixture
def model():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    return model


def values(model):
    return [np.array(variable) for variable in model.variables]


def assert_usable(model):
    """It still holds values, and goes on training."""
    model.fit(ROWS, sequence_length=16, batch_size=2, verbose=0)
    assert all(np.isfinite(value).all() for value in values(model))


def fail(model, action, error, match):
    metric = FailingMetric(name="failing")
    metric.error = error
    model.compile(keras.optimizers.Adam(), weighted_metrics=[metric])
    before = values(model.backbone)
    with pytest.raises(match[0], match=match[1]):
        action()
    for value, old in zip(values(model.backbone), before, strict=True):
        np.testing.assert_array_equal(value, old)
    model.compile()
    assert_usable(model)


def test_a_first_step_without_memory(model):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 54 bytes.")
    wanted = OutOfMemory, r"allocating 54 bytes.*Lower `sequence_length` or `batch_size`"
    fit = lambda: model.fit(ROWS, sequence_length=16, batch_size=2, verbose=0)  # noqa: E731
    fail(model, fit, error, wanted)


def test_ctrl_c_while_a_step_is_compiled(model):
    fit = lambda: model.fit(ROWS, sequence_length=16, batch_size=2, verbose=0)  # noqa: E731
    fail(model, fit, KeyboardInterrupt("now"), (KeyboardInterrupt, "now"))


def test_an_evaluation_without_memory(model):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 54 bytes.")
    evaluate = lambda: model.evaluate(ROWS, sequence_length=16, batch_size=2, verbose=0)  # noqa: E731
    fail(model, evaluate, error, (OutOfMemory, "54 bytes"))


def test_a_batch_that_cannot_be_read_keeps_the_steps_before_it(model):
    from kerora.training.fit_data import DataOptions, text_batches

    batches = text_batches(model, ROWS, DataOptions(sequence_length=16), batch_size=2)
    before = values(model.backbone)
    with pytest.raises(OSError, match="the disk is gone"):
        keras.Model.fit(model, CutOff(next(iter(batches))), shuffle=False, verbose=0)
    after = values(model.backbone)
    assert any((value != old).any() for value, old in zip(after, before, strict=True))
    assert_usable(model)


def trained(**options):
    keras.utils.set_random_seed(0)
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(ROWS, sequence_length=16, verbose=0, **options)
    return model


@pytest.fixture
def press_ctrl_c(monkeypatch):
    """Makes the third step of what is called next one in which Ctrl-C is pressed.

    As Python tells of it: when the computation is over, and before anybody has its result.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = itertools.count(1)

    def pressing(step):
        def step_and_signal(state, iterator):
            result = step(state, iterator)
            if next(steps) == 3:
                signal.raise_signal(signal.SIGINT)
            return result

        return step_and_signal

    def prepare():
        for name in ("with_replicas", "on_first_device"):
            make = getattr(replicas_jax, name)
            monkeypatch.setattr(replicas_jax, name, lambda *args, make=make: pressing(make(*args)))
        make_predict_function = keras.Model.make_predict_function

        def make(self, force=False):
            make_predict_function(self, force)
            self.predict_function = pressing(self.predict_function)

        monkeypatch.setattr(keras.Model, "make_predict_function", make)

    yield prepare
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ctrl_c_in_fit_keeps_the_steps_before_it(press_ctrl_c, batch_size):
    model = trained(batch_size=batch_size, steps_per_epoch=2)
    press_ctrl_c()
    model.compile(model.optimizer)
    with pytest.raises(KeyboardInterrupt):
        model.fit(ROWS, sequence_length=16, batch_size=batch_size, verbose=0)
    # A step that is shared out among cores leaves the values that it was given.
    done = int(model.optimizer.iterations.numpy()) - 2
    assert done == 3 if batch_size == 1 else done in (2, 3)
    whole = trained(batch_size=batch_size, steps_per_epoch=2)
    whole.fit(ROWS, sequence_length=16, batch_size=batch_size, steps_per_epoch=done, verbose=0)
    for value, expected in zip(values(model), values(whole), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    assert_usable(model)


@pytest.fixture
def usable_as_before():
    """A model that must have its values after the test, and go on training."""
    model = trained(batch_size=2)
    before = values(model)
    yield model
    for value, expected in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert_usable(model)


@pytest.mark.parametrize(
    ("method", "options"), [("evaluate", {"sequence_length": 16}), ("predict", {})]
)
def test_ctrl_c_costs_no_values_of_a_model_that_does_not_learn(
    usable_as_before, press_ctrl_c, method, options
):
    press_ctrl_c()
    usable_as_before.compile()
    with pytest.raises(KeyboardInterrupt):
        getattr(usable_as_before, method)(ROWS, batch_size=2, verbose=0, **options)


@pytest.mark.parametrize(("method", "event"), [("evaluate", "test"), ("predict", "predict")])
def test_nor_does_ctrl_c_between_two_steps(usable_as_before, method, event):
    def stop(batch, logs):
        raise KeyboardInterrupt

    stopping = keras.callbacks.LambdaCallback()
    setattr(stopping, f"on_{event}_batch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        getattr(usable_as_before, method)(ROWS, batch_size=2, verbose=0, callbacks=[stopping])
