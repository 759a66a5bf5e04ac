"""Let Ctrl-C wait for the end of a step."""

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
