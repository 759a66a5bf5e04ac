"""Regular expressions that choose layers, also those that came with an adapter from a stranger.

`re` has no limit on how long a match may take; `regex`, which KerasHub needs anyway, has one.
"""

import regex

from kerora.adapters.errors import AdapterError

_LONGEST = 10_000
_SECONDS = 1.0


def matches_whole(pattern: str, text: str) -> bool:
    """Whether a regular expression matches the whole of a layer's name.

    Args:
        pattern: The expression, as for `re`.
        text: The name.

    Raises:
        AdapterError: If it is no regular expression, or matching takes longer than a second.
    """
    if len(pattern) > _LONGEST:
        raise AdapterError(f"A pattern of {len(pattern)} characters is too long: {pattern[:80]!r}")
    try:
        return regex.fullmatch(pattern, text, timeout=_SECONDS) is not None
    except TimeoutError:
        raise AdapterError(
            f"{pattern[:80]!r} takes longer than {_SECONDS:g} s to match '{text[:80]}'. Write it "
            "without repetitions inside repetitions."
        ) from None
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise AdapterError(f"{pattern[:80]!r} is no regular expression: {error}") from error
