"""Memory of JAX's training steps on the CPU: reused from step to step, and less of it.

XLA allocates the temporaries of a step when it begins, about a gigabyte, and frees them when it
ends. The C library hands them back to the system, which must find and clear every page again for
the next step: up to a fifth of its time. Told to keep what was freed, it hands out the same pages.
That begins with training: what loading a model takes beside the model is to go back.

A step that is dispatched while another runs holds temporaries of its own: steps are run one by one.

XLA also lets operations that do not depend on each other run at the same time on the CPU, so that
none of them may use another's memory: what rematerialisation computes again then saves nothing, and
any step takes about a third more. With few cores, all busy inside each operation, that gains
nothing.
"""

import ctypes
import functools
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
    """Asks for all that must be asked for before JAX's first computation.

    On a machine where JAX has an accelerator, nothing.
    """
    if accelerated():
        return
    schedule_for_memory()
    # A heap of a thread's own cannot hold large blocks: they would be mapped and unmapped.
    _tell_allocator((_ARENA_MAX, 1))


def run_steps_one_by_one() -> None:
    """Has JAX finish a step before it begins the next, where it has no accelerator.

    Call before JAX's first computation.
    """
    if not accelerated():
        import jax

        # JAX reads no variable for this option.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def schedule_for_memory() -> bool:
    """Asks XLA for its memory-optimised scheduler through `XLA_FLAGS`.

    XLA reads the variable once, at the process's first JAX computation. A choice that is there
    already stays.

    Returns:
        Whether `XLA_FLAGS` now names the memory-optimised scheduler.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags and jaxlib_version() >= _KNOWN_SINCE:
        flags = f"{flags} --{_OPTION}={MEMORY_SCHEDULER[_OPTION]}".strip()
        os.environ["XLA_FLAGS"] = flags
    return MEMORY_SCHEDULER[_OPTION] in flags


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for the process; where JAX has no accelerator.

    Returns:
        Whether it was told: not on other systems than Linux, and not where a `MALLOC_` variable or
        `GLIBC_TUNABLES` shows that the user has chosen.
    """
    return not accelerated() and _tell_allocator((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


def release_freed_memory() -> None:
    """Has the C library hand back what was freed, on Linux; for after a model was loaded."""
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


def _tell_allocator(*options: tuple[int, int]) -> bool:
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    library = _c_library()
    if library is None or chosen:
        return False
    return all(library.mallopt(*option) for option in options)


def _c_library() -> ctypes.CDLL | None:
    """glibc, where this process runs on it."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None


@functools.cache
def accelerated() -> bool:
    """Whether JAX has an accelerator's plugin here."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    found = (importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return bool(plugins) or any(spec is not None for spec in found)


def jaxlib_version() -> tuple[int, ...]:
    """The first two numbers of it."""
    parts = importlib.metadata.version("jaxlib").split(".")
    return tuple(int(part) for part in parts[:2])
