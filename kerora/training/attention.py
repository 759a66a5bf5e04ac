"""Attention of a training or evaluation step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kerora.training.segments import segmented


@contextlib.contextmanager
def training_attention(backbone: Any, segment_ids: Any) -> Iterator[None]:
    """Confine attention to the examples of packed rows while a step is traced."""
    with segmented(segment_ids):
        yield
