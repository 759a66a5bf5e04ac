"""Keep the noise of libraries off the screen."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

# What TensorFlow, absl and SentencePiece write past Python's logging, none of it of use here.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl|[IW]\d{4} [\d:. ]+\d+ \w+\.(cc|h):|E.*cuInit"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] |\w+\.cc\(\d+\) LOG\(INFO\)|To enable the following instr)"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop known noise from what is written to standard error meanwhile; the rest is passed on.

    It is for imports and loading, where TensorFlow and SentencePiece talk past Python's logging.

    Example:
    ```python
    with quiet():
        import keras_hub
    ```
    """
    sys.stderr.flush()
    screen = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    thread = threading.Thread(target=_pass_on, args=(source, screen), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)  # closes the end that writes, and so ends the thread
        thread.join(timeout=1)  # unless a process that was started meanwhile still holds it


def _pass_on(source: int, screen: int) -> None:
    """Write what is read to the screen, line by line (or progress by progress)."""
    rest = b""
    with os.fdopen(source, "rb", buffering=0) as stream:
        while chunk := stream.read(65536):
            *pieces, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
            os.write(screen, b"".join(piece for piece in pieces if not _NOISE.match(piece)))
    os.write(screen, b"" if _NOISE.match(rest) else rest)
    os.close(screen)
