"""A step that fails leaves the model its values."""

import keras
import numpy as np
import pytest

import kerora
from kerora.training.errors import OutOfMemory

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone takes the values out of a model's variables", allow_module_level=True)

import jax

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
