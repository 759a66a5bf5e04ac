"""Keras' own ways to keep weights hold base and adapter apart, and training goes on exactly."""

import keras
import numpy as np
import pytest
from adapted_models import (
    all_equal,
    compile_for_tokens,
    eager_logits,
    factor_variables,
    fill_factors,
    fit_losses,
    small_model,
    values,
)

from kerora.adapters import LoraConfig, add_adapter


def _adapted(mode=None, seed=0, **config):
    model = small_model()
    if mode:
        model.quantize(mode)
    keras.utils.set_random_seed(seed)
    add_adapter(model, LoraConfig(**{"rank": 2, "targets": "all-linear", **config}))
    return compile_for_tokens(model)


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_save_weights_restores_base_and_adapter_and_training_goes_on(tmp_path, mode):
    model = _adapted(mode)
    fit_losses(model, epochs=2)
    file = tmp_path / "all.weights.h5"
    model.save_weights(file)
    kept, predicted = values(model.weights), eager_logits(model)

    other = _adapted(mode, seed=1)
    other.optimizer.build(other.trainable_variables)
    assert not all_equal(values(other.weights), kept)
    other.load_weights(file)
    assert all_equal(values(other.weights), kept)
    assert np.array_equal(eager_logits(other), predicted)
    if mode is None:
        ahead = fit_losses(model, epochs=3)
        assert fit_losses(other, epochs=3) == pytest.approx(ahead, rel=1e-6)
        assert ahead[-1] < ahead[0] - 0.01
        assert all_equal(values(other.weights), values(model.weights))


def test_the_saved_kernel_is_the_base_kernel(tmp_path):
    model = _adapted()
    fill_factors(model)
    file = tmp_path / "all.weights.h5"
    model.save_weights(file)
    base = small_model()
    for weight in base.weights:
        weight.assign(weight * 0)
    base.load_weights(file)
    untouched = small_model()
    assert all_equal(values(base.weights), values(untouched.weights))


def test_model_checkpoint_keeps_the_best_adapter(tmp_path):
    model = _adapted()
    file = tmp_path / "best.weights.h5"
    keep = keras.callbacks.ModelCheckpoint(
        file, monitor="loss", save_best_only=True, save_weights_only=True
    )
    fit_losses(model, epochs=3, callbacks=[keep])
    other = _adapted(seed=1)
    other.load_weights(file)
    assert all_equal(values(other.weights), values(model.weights))


class _Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_backup_and_restore_goes_on_as_if_nothing_had_happened(tmp_path, dropout):
    whole = _adapted(dropout=dropout)
    losses = fit_losses(whole, epochs=5)

    cut = _adapted(dropout=dropout)
    with pytest.raises(KeyboardInterrupt):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        fit_losses(cut, epochs=5, callbacks=[backup, _Stop()])
    resumed = _adapted(seed=8, dropout=dropout)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    assert fit_losses(resumed, epochs=5, callbacks=[backup]) == pytest.approx(losses[3:], rel=1e-6)
    assert losses[4] < losses[3] < losses[0]
    for ours, theirs in zip(
        values(factor_variables(resumed)), values(factor_variables(whole)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    frozen = [v for v in resumed.weights if not v.trainable]
    assert all_equal(values(frozen), values([v for v in whole.weights if not v.trainable]))
