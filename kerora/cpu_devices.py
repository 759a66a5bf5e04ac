"""The CPU as one JAX device a core, which a training step's batch is shared out among.

See `kerora/training/replicas_jax.py`. What runs on one device alone still uses all cores.
"""

from __future__ import annotations

import os
import sys

from kerora.cpu_memory import accelerated, jaxlib_version

# XLA ends the process over a flag that it does not know.
_KNOWN_SINCE = (0, 10)
_DEVICES = "xla_force_host_platform_device_count"
# Devices wait for each other at the end of a step, by default 40 seconds, and then XLA ends the
# process: too few where one has more tokens to learn than another, or while a machine sleeps.
_WAIT = (
    "xla_cpu_collective_call_terminate_timeout_seconds",
    "xla_cpu_collective_call_warn_stuck_timeout_seconds",
)
_MOST_DEVICES, _SECONDS = 8, 1_000_000


def show_cores_as_devices() -> None:
    """Asks XLA for one device a core, through `XLA_FLAGS`; not where JAX has an accelerator.

    XLA reads the variable once, at the process's first JAX computation: after it, nothing is asked
    for. A choice that is there already stays.
    """
    bridge = sys.modules.get("jax._src.xla_bridge")
    is_too_late = bridge is not None and bridge.backends_are_initialized()
    if is_too_late or accelerated() or jaxlib_version() < _KNOWN_SINCE:
        return
    wanted = {_DEVICES: min(cores(), _MOST_DEVICES), **dict.fromkeys(_WAIT, _SECONDS)}
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in wanted.items():
        if name not in flags:
            flags = f"{flags} --{name}={value}".strip()
    os.environ["XLA_FLAGS"] = flags


def cores() -> int:
    """How many cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


def devices_wait() -> bool:
    """Whether `XLA_FLAGS` says how long devices wait for each other."""
    return all(name in os.environ.get("XLA_FLAGS", "") for name in _WAIT)
