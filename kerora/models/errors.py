"""The error that loading a model raises for what a user can mend."""

import contextlib
from collections.abc import Iterator

from kerora.json_file import shown


class ModelSourceError(ValueError):
    """A source that names no model, or one that cannot be loaded faithfully."""


def inexpressible(family: str, field: str, value: object, expected: object) -> ModelSourceError:
    """The error for a field of a configuration that KerasHub's layers cannot compute."""
    return ModelSourceError(
        f"KerasHub's backbone for '{family}' has no way to express this `{field}`. Expected: "
        f"{expected}. Received: {shown(value)}. Loaded regardless, the model would give other "
        "answers."
    )


_LONGEST_REASON = 500


@contextlib.contextmanager
def told_of_source(what: str) -> Iterator[None]:
    """Within this context whatever fails is told as an error of the source.

    For the places where KerasHub, `tokenizers` or Keras read what a stranger wrote: they trust it,
    and fail in any way that a program can.

    Args:
        what: Begins the message, such as `"No model can be built from 'x/config.json'"`.

    Raises:
        ModelSourceError: From what was raised within; another `ModelSourceError` goes through.
    """
    try:
        yield
    except ModelSourceError:
        raise
    except BaseException as error:
        # A panic inside `tokenizers` is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        raise ModelSourceError(f"{what}: {reason}") from error
