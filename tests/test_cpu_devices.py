"""Cores as JAX devices."""

import os
import subprocess
import sys

import pytest

from kerora.cpu_devices import devices_wait, show_cores_as_devices


def test_what_is_asked_for_is_asked_once_and_a_choice_stays(monkeypatch):
    # JAX may have computed in this process, and then nothing is asked for.
    monkeypatch.delitem(sys.modules, "jax._src.xla_bridge", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert not devices_wait()
    show_cores_as_devices()
    asked = os.environ["XLA_FLAGS"].split()
    assert len(asked) == 3 and asked[0] == "--xla_force_host_platform_device_count=3"
    assert devices_wait()
    show_cores_as_devices()
    assert os.environ["XLA_FLAGS"].split() == asked


def _printed(program, flags=""):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are counted otherwise")
@pytest.mark.parametrize("before", ["", "import jax; "])
def test_jax_has_a_device_for_each_core(before):
    count = _printed(f"{before}import kerora, jax; print(jax.local_device_count())")
    assert int(count) == min(len(os.sched_getaffinity(0)), 8)


def test_devices_that_were_there_before_do_not_wait():
    program = (
        "import jax; jax.devices(); import kerora.cpu_devices as cpu; print(cpu.devices_wait())"
    )
    assert _printed(program, "--xla_force_host_platform_device_count=2") == "False"
