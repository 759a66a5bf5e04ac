"""Checkpoints: exact, small, whole or not at all."""

import contextlib
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
from training.tiny_run import assert_same_values, model, optimizer, values

from kerora.training.checkpoints import newest_checkpoint, restore_checkpoint, save_checkpoint
from kerora.training.errors import CheckpointError, NonFiniteLoss


def scramble(task, seed=0):
    """Give everything that a checkpoint holds some other value."""
    from kerora.training.checkpoint_state import changing_variables

    rng = np.random.default_rng(seed)
    for variables in changing_variables(task).values():
        for variable in variables:
            variable.assign(rng.integers(1, 100, variable.shape) / 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_come_back_to_the_bit(tmp_path, dtype):
    saved = model(dtype)
    if dtype == "bfloat16":
        saved.backbone.trainable = True  # bfloat16 weights train, and so do bfloat16 averages
        for variable in saved.backbone.weights:
            variable.trainable = True
        saved.compile(optimizer=optimizer())
    scramble(saved)
    expected = values(saved)
    assert {v.dtype.name for v in expected.values()} >= {dtype, "float32"}
    save_checkpoint(tmp_path, saved, 7, {"batch": 3}, {"seed": 1})
    scramble(saved, seed=1)
    checkpoint = restore_checkpoint(tmp_path, saved)
    assert (checkpoint.step, checkpoint.data_state, checkpoint.extra) == (
        7,
        {"batch": 3},
        {"seed": 1},
    )
    assert_same_values(values(saved), expected)


def test_another_process_would_find_them_under_other_names(tmp_path):
    saved = model()
    scramble(saved)
    save_checkpoint(tmp_path, saved, 1)
    fresh = model()
    names = [v.path for v in saved.optimizer.variables]
    fresh.optimizer.build(fresh.trainable_variables)
    assert names != [v.path for v in fresh.optimizer.variables]
    restore_checkpoint(tmp_path, fresh)
    assert_same_values(values(fresh), values(saved))


def test_moving_statistics_and_loss_scale_are_held_and_frozen_weights_are_not(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    net = keras.Sequential([*layers, keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    net.layers[0].trainable = False
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    net.compile(optimizer=scaled, loss="mse")
    net.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    paths = " ".join(values(net))
    for held in (
        "moving_mean",
        "moving_variance",
        "seed",
        "dynamic_scale",
        "momentum",
        "iteration",
    ):
        assert held in paths
    assert net.layers[0].kernel.path not in paths
    expected = values(net)
    save_checkpoint(tmp_path, net, 1)
    net.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    restore_checkpoint(tmp_path, net)
    assert_same_values(values(net), expected)


def test_it_is_under_three_percent_of_the_model(tmp_path):
    task = model(hidden_dim=256, intermediate_dim=1024, num_layers=4, head_dim=32)
    path = save_checkpoint(tmp_path, task, 1)
    held = sum(file.stat().st_size for file in path.iterdir())
    whole = sum(v.numpy().nbytes for v in task.backbone.weights)
    assert held < 0.03 * whole


def test_two_are_kept(tmp_path):
    task = model()
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, task, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    task = model()
    save_checkpoint(tmp_path, task, 1, extra={"try": 1})
    save_checkpoint(tmp_path, task, 1, extra={"try": 2})
    assert newest_checkpoint(tmp_path).extra == {"try": 2}
    # As if the process had died between moving the old one away and the new one in.
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001.replaced")
    assert newest_checkpoint(tmp_path).extra == {"try": 2}


def _truncate(path):
    file = path / "values-0000.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def _flip_a_bit(path):
    file = path / "values-0000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _change_the_step(path):
    file = path / "checkpoint.json"
    document = json.loads(file.read_text())
    document["step"] += 1
    file.write_text(json.dumps(document))


def _lose_the_document(path):
    (path / "checkpoint.json").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _change_the_step, _lose_the_document])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    task = model()
    save_checkpoint(tmp_path, task, 1)
    expected = values(task)
    scramble(task)
    damage(save_checkpoint(tmp_path, task, 2))
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert restore_checkpoint(tmp_path, task).step == 1
    assert_same_values(values(task), expected)
    # A continued run leaves the damaged one behind, and keeps the whole ones.
    with pytest.warns(UserWarning, match="damaged"):
        newest_checkpoint(tmp_path)
    save_checkpoint(tmp_path, task, 2)
    assert sorted(p.name for p in tmp_path.glob("step-*[0-9]")) == [
        "step-00000001",
        "step-00000002",
    ]
    assert newest_checkpoint(tmp_path).step == 2


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(tmp_path):
    task = model()
    assert restore_checkpoint(tmp_path / "nothing", task) is None
    _truncate(save_checkpoint(tmp_path, task, 1))
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="Remove that folder"):
        restore_checkpoint(tmp_path, task)


def test_half_written_ones_are_never_read_and_cleared(tmp_path):
    task = model()
    path = save_checkpoint(tmp_path, task, 1)
    shutil.copytree(path, tmp_path / ".writing-1")
    shutil.copytree(path, tmp_path / ".removing-step-00000000")
    assert newest_checkpoint(tmp_path).step == 1
    save_checkpoint(tmp_path, task, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"rank": 8}, "kernel_a"),
        ({"hidden_dim": 16}, "kernel_a"),
        ({"num_layers": 2}, "in the checkpoint nothing"),
        ({"compiled_with": keras.optimizers.SGD(0.1)}, "optimizer is 'AdamW'.*'SGD'"),
        ({"compiled_with": optimizer(use_ema=True)}, "average"),
    ],
)
def test_another_run_is_refused_and_named(tmp_path, other, named):
    save_checkpoint(tmp_path, model(), 1)
    task = model(**other)
    before = values(task)
    with pytest.raises(CheckpointError, match=named):
        restore_checkpoint(tmp_path, task)
    assert_same_values(values(task), before)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    task = model()
    save_checkpoint(tmp_path, task, 1)
    kernel = task.trainable_variables[0]
    kernel.assign(kernel.numpy() * np.nan)
    with pytest.raises(NonFiniteLoss, match="After step 2"):
        save_checkpoint(tmp_path, task, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "checkpoints", model(), 1)


@contextlib.contextmanager
def little_room(limit):
    """No file may grow beyond so many bytes: a real limit, as a full disk is one."""
    import resource

    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, room[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(os.name != "posix", reason="the limit is one of POSIX")
def test_no_room_leaves_the_last_one_intact(tmp_path):
    task = model()
    save_checkpoint(tmp_path, task, 1)
    with (
        pytest.raises(CheckpointError, match=r"File too large.*intact: step-00000001"),
        little_room(2000),
    ):
        save_checkpoint(tmp_path, task, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert restore_checkpoint(tmp_path, task).step == 1
