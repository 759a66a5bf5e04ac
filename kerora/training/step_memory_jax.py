"""Memory that steps and compilations leave behind on a CPU. JAX alone.

`keep_freed_memory` has the C library keep what a step frees for the next one. glibc before 2.38
cannot always use it again: XLA's blocks are aligned, the few bytes cut off beside one go to
somebody else, and then the block's place is just too small for the next of the same size. So the
process grows by a block now and then, from 2.2 to 4 GB in a dozen steps of SmolLM2. And compiling
leaves hundreds of megabytes in small pieces that no step can use. Both are handed back when they
are seen; the pages of the next step are then found and cleared once.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax

from kerora.cpu_memory import keep_freed_memory, release_freed_memory

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONG = 1.0  # seconds of compiling that leave something worth the search
_GROWTH = 64 * 2**20


class StepMemory:
    """Keeps a process that runs steps at the memory that one of them takes."""

    def __init__(self) -> None:
        self._watches = keep_freed_memory()
        self._resident: int | None = None
        if self._watches:
            _release_after_compiling()

    def after_step(self) -> None:
        """Hands freed memory back if the process has grown since an earlier step."""
        if not self._watches:
            return
        resident = _resident_bytes()
        if self._resident is None:
            self._resident = resident
        elif resident > self._resident + _GROWTH:
            release_freed_memory()
            self._resident = None


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _release_after_compiling() -> None:
    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            release_freed_memory()

    jax.monitoring.register_event_duration_secs_listener(compiled)
