"""Ctrl-C waits where something would be left half done, and nowhere else."""

import signal
import threading

import pytest
from backends import once

from kerora.training.interrupts import ctrl_c_held

pytestmark = once


@pytest.fixture(autouse=True)
def pythons_own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def test_it_is_noted_once_while_the_condition_is_true():
    with ctrl_c_held(lambda: True) as pressed:
        assert not pressed()
        press()
        assert pressed()
    with pytest.raises(KeyboardInterrupt), ctrl_c_held(lambda: True):
        press()
        press()


def test_it_stops_at_once_while_the_condition_is_not():
    with pytest.raises(KeyboardInterrupt), ctrl_c_held(lambda: False):
        press()


@pytest.mark.parametrize("handler", [lambda number, frame: None, signal.SIG_IGN])
def test_a_handler_of_the_programs_own_stays(handler):
    signal.signal(signal.SIGINT, handler)
    with ctrl_c_held(lambda: True) as pressed:
        press()
        assert signal.getsignal(signal.SIGINT) is handler
        assert not pressed()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_changes_nothing():
    seen = []

    def hold():
        with ctrl_c_held(lambda: True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
