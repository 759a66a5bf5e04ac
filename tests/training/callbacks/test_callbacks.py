"""What callbacks show, write and leave to the device."""

import io
import json

import keras
import pytest
from rich.console import Console
from training.callbacks.counting import LOSSES, fit_counting

from kerora.training.callbacks import (
    CheckpointEvery,
    MetricsLog,
    Progress,
    StepCallback,
    StopOnNonFinite,
    truncate_metrics,
)
from kerora.training.callbacks.step_callbacks import LAG
from kerora.training.checkpoints import newest_checkpoint
from kerora.training.errors import RunFolderError


class Recorder(StepCallback):
    """Notes which step was reported when."""

    def __init__(self, ask_at=None):
        super().__init__()
        self.events = []
        self.ask_at = ask_at

    def after_step(self, step, logs):
        self.events.append(("after", step, logs["step_loss"]))

    def between_steps(self, step):
        if step == self.ask_at:
            self.catch_up()
        self.events.append(("between", step))


def test_logs_come_two_steps_late_with_the_values_of_their_step():
    recorder = Recorder()
    fit_counting([recorder], steps=5)
    after = [event[1:] for event in recorder.events if event[0] == "after"]
    assert after == [(step, pytest.approx(LOSSES[step - 1])) for step in range(1, 6)]
    assert recorder.events.index(("between", LAG)) < recorder.events.index(("after", *after[0]))


def test_catching_up_hands_on_every_step_so_far():
    recorder = Recorder(ask_at=3)
    fit_counting([recorder], steps=5)
    before = recorder.events[: recorder.events.index(("between", 3))]
    assert [event[1] for event in before if event[0] == "after"] == [1, 2, 3]


def test_steps_go_on_over_epochs_and_from_the_start_step():
    recorder = Recorder()
    recorder.step = recorder._boundary = 100
    fit_counting([recorder], steps=3, epochs=2)
    assert [e[1] for e in recorder.events if e[0] == "after"] == list(range(101, 107))
    assert [e[1] for e in recorder.events if e[0] == "between"] == list(range(101, 107))


def test_checkpoints_by_steps(tmp_path):
    fit_counting([CheckpointEvery(tmp_path, seconds=None, steps=2, extra={"a": 1})], steps=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    assert newest_checkpoint(tmp_path).extra == {"a": 1}


def test_checkpoints_by_time(tmp_path):
    every = CheckpointEvery(tmp_path, seconds=0.0)
    saved = []
    every._data_state = lambda step: saved.append(step) or {}
    fit_counting([every], steps=3)
    assert saved == [1, 2, 3]


def test_a_rate_that_a_callback_sets_is_logged(tmp_path):
    by_epoch = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1))
    fit_counting([MetricsLog(tmp_path / "m.jsonl"), by_epoch], steps=2, epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == [0.5, 0.5, 0.25, 0.25]


def test_metrics_are_cut_back_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 3, "seconds": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"step": 4, "lo']))
    truncate_metrics(path, 2)
    assert path.read_text().splitlines() == lines[:2]
    log = MetricsLog(path, start_step=2)
    fit_counting([log], steps=1)
    assert json.loads(path.read_text().splitlines()[-1])["seconds"] >= 2
    truncate_metrics(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_log_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be written"):
        fit_counting([MetricsLog(tmp_path / "file" / "metrics.jsonl")], steps=1)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_step_and_loss(terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    fit_counting([Progress(3, console=console)], steps=3)
    assert f"loss {LOSSES[2]:.4f}" in text.getvalue()
    assert "3/3" in text.getvalue()
    assert "first step takes longest" in text.getvalue()
    assert ("\x1b" in text.getvalue()) == terminal


def test_a_finite_loss_stops_nothing():
    fit_counting([StopOnNonFinite()], steps=2)
