"""A run that was interrupted ends like one that was not."""

import keras
import numpy as np
import pytest
from training.tiny_run import (
    STEPS,
    assert_same_values,
    batches,
    metrics,
    model,
    optimizer,
    small_model,
    values,
)

from kerora.training.checkpoints import newest_checkpoint
from kerora.training.resume import fit_steps


class Crash(keras.callbacks.Callback):
    """Dies in the middle of a run, without warning."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            raise RuntimeError("crash")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    task = model()
    held_out = {"validation_data": batches(seed=1), "validation_steps": 5}
    fit_steps(task, batches(), STEPS, folder, **held_out)
    return values(task), metrics(folder)


def test_an_interrupted_run_ends_like_a_whole_one(uninterrupted, tmp_path):
    assert batches().steps_per_epoch < STEPS  # a resume in a later epoch is among them
    held_out = {"validation_data": batches(seed=1), "validation_steps": 5, "checkpoint_steps": 3}
    for batch in (4, 8):  # after steps 4 and 11; the last checkpoints are of 3 and 9
        with pytest.raises(RuntimeError, match="crash"):
            fit_steps(model(), batches(), STEPS, tmp_path, callbacks=[Crash(batch)], **held_out)
    task = model()
    assert fit_steps(task, batches(), STEPS, tmp_path, **held_out) == 9
    expected, lines = uninterrupted
    assert_same_values(values(task), expected)
    assert metrics(tmp_path) == lines
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "val_loss" in line] == [5, 10, STEPS]


def test_the_default_learning_rate_is_chosen_once_for_the_whole_run(tmp_path):
    def by_default():
        task = model()
        task.compile()
        return task

    whole, parts = by_default(), by_default()
    fit_steps(whole, batches(), 5, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        crash = {"callbacks": [Crash(2)], "checkpoint_steps": 1}
        fit_steps(parts, batches(), 5, tmp_path / "parts", **crash)
    assert fit_steps(parts, batches(), 5, tmp_path / "parts") == 1
    assert_same_values(values(parts), values(whole))


def test_the_log_tells_rate_tokens_and_own_loss(uninterrupted):
    lines = [line for line in uninterrupted[1] if "loss" in line]
    schedule = optimizer()._learning_rate
    for line, batch in zip(lines, batches().repeat(), strict=False):
        assert line["learning_rate"] == pytest.approx(float(schedule(line["step"] - 1)), rel=1e-6)
        assert line["tokens"] == np.sum(batch[0]["padding_mask"] > 0)
    own = model()
    own.report_steps()
    (x, y, weights), seen = next(iter(batches())), []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs))
    own.fit(x, y, sample_weight=weights, batch_size=4, verbose=0, callbacks=[keep])
    assert float(seen[0]["step_loss"]) == pytest.approx(lines[0]["loss"], rel=1e-5)


def test_a_run_that_is_done_does_nothing_more(tmp_path):
    task = small_model()
    fit_steps(task, batches(), 4, tmp_path)
    again = small_model()
    assert fit_steps(again, batches(), 4, tmp_path) == 4
    assert_same_values(values(again), values(task))


def test_ctrl_c_stops_between_steps_and_loses_none(tmp_path):
    import signal

    class PressCtrlC(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 6:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 6"):
        fit_steps(small_model(), batches(), STEPS, tmp_path / "parts", callbacks=[PressCtrlC()])
    assert signal.getsignal(signal.SIGINT) is before
    assert newest_checkpoint(tmp_path / "parts/checkpoints").step == 6
    task = small_model()
    assert fit_steps(task, batches(), STEPS, tmp_path / "parts") == 6
    whole = small_model()
    fit_steps(whole, batches(), STEPS, tmp_path / "whole")
    assert_same_values(values(task), values(whole))


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_no_checkpoint_follows_a_number_that_is_not_finite(tmp_path, where):
    from kerora.training.errors import NonFiniteLoss

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 5:
                if hasattr(self.model, "jax_state_sync"):
                    self.model.jax_state_sync()
                kernel = self.model.trainable_variables[0]
                kernel.assign(kernel.numpy() * np.nan)

    # With a checkpoint after every step the weights are looked at before the next loss is known.
    every = {"loss": None, "weights": 1}[where]
    with pytest.raises(NonFiniteLoss, match="step") as raised:
        spoil = {"checkpoint_steps": every, "callbacks": [Spoil()]}
        fit_steps(small_model(), batches(), STEPS, tmp_path, **spoil)
    assert raised.value.step == {"loss": 6, "weights": 5}[where]
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert (checkpoint.step if checkpoint else None) == {"loss": None, "weights": 4}[where]


def test_averages_of_weights_survive(tmp_path):
    def averaging():
        return small_model(compiled_with=optimizer(use_ema=True, gradient_accumulation_steps=None))

    whole = averaging()
    fit_steps(whole, batches(), 6, tmp_path / "whole")
    fit_steps(averaging(), batches(), 3, tmp_path / "parts")
    parts = averaging()
    fit_steps(parts, batches(), 6, tmp_path / "parts")
    assert_same_values(values(parts), values(whole))
