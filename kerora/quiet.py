"""Keep the noise of libraries off the screen."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# What TensorFlow, absl and SentencePiece write past Python's logging, none of it of use here.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl|[IW]\d{4} [\d:. ]+\d+ \w+\.(cc|h):|E.*cuInit"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] |\w+\.cc\(\d+\) LOG\(INFO\)|To enable the following instr)"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is written to standard error meanwhile, and drop known noise from it.

    It is for imports and loading, where TensorFlow and SentencePiece talk past Python's logging.

    Example:
    ```python
    with quiet():
        import keras_hub
    ```
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        screen = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            held.seek(0)
            kept = b"".join(line for line in held if not _NOISE.match(line))
            os.write(screen, kept)
            os.close(screen)
