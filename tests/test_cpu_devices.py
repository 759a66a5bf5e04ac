"""Cores as JAX devices."""

import os
import subprocess
import sys

import pytest

from kerora.cpu_devices import devices_wait, show_cores_as_devices


def test_what_is_asked_for_is_asked_once_and_a_choice_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert not devices_wait()
    show_cores_as_devices()
    asked = os.environ["XLA_FLAGS"].split()
    assert len(asked) == 3 and asked[0] == "--xla_force_host_platform_device_count=3"
    assert devices_wait()
    show_cores_as_devices()
    assert os.environ["XLA_FLAGS"].split() == asked


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are counted otherwise")
@pytest.mark.parametrize("before", ["", "import jax; "])
def test_jax_has_a_device_for_each_core(before):
    program = f"{before}import kerora, jax; print(jax.local_device_count())"
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "device_count" not in flag]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": " ".join(kept)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == min(len(os.sched_getaffinity(0)), 8)
