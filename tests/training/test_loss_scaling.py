"""Training on a float16 base, whose gradients float16 does not hold unless the loss is scaled."""

import keras
import keras_hub
import numpy as np
from tiny_backbones import VOCABULARY, tiny_backbone

import kerora

TINY_ALPHA = 5e-5  # as small as the gradients that it leaves


def model(dtype):
    """A tiny Gemma with an adapter, of the same values in each type."""
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone("gemma", dtype=dtype, num_layers=1)
    rng = np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(rng.normal(0, 0.25, variable.shape).astype("float16"))
    task = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    task.backbone.enable_lora(2, alpha=TINY_ALPHA)
    for variable in task.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape).astype("float32"))
    return task


def batch():
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, (4, 33)).astype("int32")
    mask = np.ones((4, 32), "int32")
    return {"token_ids": tokens[:, :-1], "padding_mask": mask}, tokens[:, 1:]


def values(task):
    """All factors, one after the other."""
    arrays = [keras.ops.convert_to_numpy(v) for v in task.trainable_variables]
    return np.concatenate([array.ravel() for array in arrays])


def moved(task, steps):
    """What training adds to the factors."""
    before = values(task)
    x, y = batch()
    task.fit(x, y, batch_size=4, epochs=steps, shuffle=False, verbose=0)
    return values(task) - before


def test_factors_move_as_in_float32_where_float16_holds_no_such_gradient():
    def change(dtype):
        task = model(dtype)
        task.compile(optimizer=keras.optimizers.SGD(1000.0))
        return moved(task, 3)

    expected = change("float32")
    assert np.linalg.norm(change("float16") - expected) < 0.02 * np.linalg.norm(expected)


def test_a_step_whose_gradients_overflow_changes_nothing_but_the_scale():
    task = model("float16")
    assert moved(task, 1).any()
    too_large = 2.0**60
    task.optimizer.dynamic_scale.assign(too_large)
    assert not moved(task, 1).any()
    assert float(task.optimizer.dynamic_scale) == too_large / 2
    assert int(task.optimizer.iterations) == 1


def test_the_loss_is_scaled_once_and_only_where_that_is_wanted():
    task = model("float16")
    given = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    task.compile(optimizer=given)
    assert task.optimizer is given
    task.compile(optimizer="sgd", auto_scale_loss=False)
    assert not isinstance(task.optimizer, keras.optimizers.LossScaleOptimizer)
    other = model("float32")
    assert not isinstance(other.optimizer, keras.optimizers.LossScaleOptimizer)
