"""What a step does where several replicas share its batch.

See `replicas_jax.py` (cores of a CPU) and `replicas_tensorflow.py` (`tf.distribute`).

Sums over tokens are then sums over the tokens of all replicas. Elsewhere nothing here does
anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

_total: ContextVar[Callable[[Any], Any] | None] = ContextVar("kerora_replicas", default=None)


@contextlib.contextmanager
def replicated(total: Callable[[Any], Any]) -> Iterator[None]:
    """While a replica's part of a step is traced.

    Args:
        total: Adds up a tensor over the replicas; the same on each.
    """
    token = _total.set(total)
    try:
        yield
    finally:
        _total.reset(token)


def over_replicas(value: Any) -> Any:
    """The sum of a scalar over all replicas of the step that is traced; it has no gradient."""
    total = _total.get()
    return value if total is None else total(value)
