"""XLA's scheduler on the CPU, set to save memory.

By default XLA lets operations that do not depend on each other run at the same time on the CPU, and
so none of them may use another's memory. What is computed again in a backward pass then saves
nothing, and any training step takes about a third more temporary memory. With few cores, all busy
inside each operation, that concurrency gains nothing in return.
"""

import importlib.metadata
import os

MEMORY_SCHEDULER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
_OPTION = "xla_cpu_scheduler_type"
# XLA ends the process over a flag that it does not know, and older ones do not know this one.
_KNOWN_SINCE = (0, 10)


def schedule_for_memory() -> bool:
    """Asks XLA for its memory-optimised scheduler through `XLA_FLAGS`.

    XLA reads the variable once, at the process's first JAX computation; call this before. A choice
    that is there already stays.

    Returns:
        Whether `XLA_FLAGS` now names the memory-optimised scheduler.

    Example:

        schedule_for_memory()
        import keras
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags and _version("jaxlib") >= _KNOWN_SINCE:
        flags = f"{flags} --{_OPTION}={MEMORY_SCHEDULER[_OPTION]}".strip()
        os.environ["XLA_FLAGS"] = flags
    return MEMORY_SCHEDULER[_OPTION] in flags


def _version(distribution: str) -> tuple[int, ...]:
    parts = importlib.metadata.version(distribution).split(".")
    return tuple(int(part) for part in parts[:2])
