"""Warnings that show the user's line."""

from __future__ import annotations

import inspect
import warnings

# Between a user's line and a warning lie frames of these; a thread that reads ahead has no others.
_INNER = ("kerora", "keras", "keras_hub", "threading")


def warn_user(message: str) -> None:
    """Warn of what the user's line leads to, however deep below it that was found.

    (A fixed `stacklevel` counts decorators and Keras' own functions, which come and go; Python 3.12
    has `skip_file_prefixes`, and 3.11 has not.)

    Args:
        message: What happens, and what to do about it.
    """
    here = inspect.currentframe()
    frame, level = here and here.f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level if frame is not None else 2)
