"""Memory of JAX's training steps on the CPU: reused from step to step, and less of it.

XLA allocates the temporaries of a step when it begins, about a gigabyte, and frees them when it
ends. The C library hands them back to the system, which must find and clear every page again for
the next step: up to a fifth of its time. Told to keep what was freed, it hands out the same pages.

XLA also lets operations that do not depend on each other run at the same time on the CPU, so that
none of them may use another's memory: what rematerialisation computes again then saves nothing, and
any step takes about a third more. With few cores, all busy inside each operation, that gains
nothing.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

MEMORY_SCHEDULER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
_OPTION = "xla_cpu_scheduler_type"
# XLA ends the process over a flag that it does not know, and older ones do not know this one.
_KNOWN_SINCE = (0, 10)
# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def prepare_cpu_memory() -> None:
    """Does both on a machine where JAX has no accelerator. Call before JAX's first computation."""
    if _accelerated():
        return
    schedule_for_memory()
    keep_freed_memory()


def schedule_for_memory() -> bool:
    """Asks XLA for its memory-optimised scheduler through `XLA_FLAGS`.

    XLA reads the variable once, at the process's first JAX computation. A choice that is there
    already stays.

    Returns:
        Whether `XLA_FLAGS` now names the memory-optimised scheduler.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags and _version("jaxlib") >= _KNOWN_SINCE:
        flags = f"{flags} --{_OPTION}={MEMORY_SCHEDULER[_OPTION]}".strip()
        os.environ["XLA_FLAGS"] = flags
    return MEMORY_SCHEDULER[_OPTION] in flags


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the process, in one heap for all threads.

    Returns:
        Whether it was told: not on other systems, and not where a `MALLOC_` variable or
        `GLIBC_TUNABLES` shows that the user has chosen.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or chosen:
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # A heap of a thread's own cannot hold large blocks: they would be mapped and unmapped.
    return all(
        mallopt(*option) for option in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    )


def _accelerated() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    found = (importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return bool(plugins) or any(spec is not None for spec in found)


def _version(distribution: str) -> tuple[int, ...]:
    parts = importlib.metadata.version(distribution).split(".")
    return tuple(int(part) for part in parts[:2])
