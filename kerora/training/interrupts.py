"""Let Ctrl-C wait for the end of a step, or for its result."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Within this context the first Ctrl-C (or SIGTERM) is a request, the second stops at once.

    In the middle of a step a model's values are in no state that could be saved. Outside the main
    thread nothing is changed.

    Yields:
        A function that tells whether a stop was requested.

    Example:
    ```python
    with stop_between_steps() as stop_requested:
        model.fit(data, callbacks=[CheckpointEvery(folder, stop_requested=stop_requested)])
    ```
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle(number: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        print(
            "\nStopping after this step and a checkpoint. Ctrl-C again stops at once.",
            file=sys.stderr,
            flush=True,
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ctrl_c_held(while_true: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Within this context Ctrl-C is only noted while a condition is true; pressed again, it stops.

    For code that must not be left before it has its result. Nothing is changed outside the main
    thread, nor where the program handles or ignores Ctrl-C by itself.

    Args:
        while_true: The condition, which is asked when Ctrl-C is pressed.

    Yields:
        A function that tells whether Ctrl-C was noted; final once the context is left.

    Example:
    ```python
    with ctrl_c_held(lambda: writing) as pressed:
        write()
    if pressed():
        raise KeyboardInterrupt
    ```
    """
    noted = False
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: noted
        return

    def handle(number: int, frame: object) -> None:
        nonlocal noted
        if noted or not while_true():
            raise KeyboardInterrupt
        noted = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
