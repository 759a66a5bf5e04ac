"""What JAX on the CPU is asked to do with memory."""

import os
import resource
import subprocess
import sys

import pytest

from kerora.cpu_memory import MEMORY_SCHEDULER, schedule_for_memory

FAULTS = """
import resource
import numpy as np

import kerora
from kerora.cpu_memory import keep_freed_memory

keep_freed_memory()

def fill():
    np.ones(64 * 2**20, "uint8").sum()

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

ONE_BY_ONE = """
import kerora
import jax

products = jax.jit(lambda x: x @ x @ x @ x @ x @ x)
x = jax.numpy.ones((1500, 1500))
products(x).block_until_ready()
print(products(x).is_ready())
"""


def output(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "jax", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def page_faults(**environment):
    return int(output(FAULTS, **environment))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux'")
def test_freed_memory_is_used_again_unless_the_user_has_chosen():
    pages = 64 * 2**20 // resource.getpagesize()
    assert page_faults() < pages
    # NumPy asks for huge pages where the system has them: one fault each 2 MB.
    assert page_faults(MALLOC_TRIM_THRESHOLD_="131072") > 4 * 32


def test_a_step_is_done_when_the_next_begins():
    # Two steps at a time would hold the temporaries of two.
    assert output(ONE_BY_ONE) == "True"


def test_the_scheduler_is_asked_for_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert schedule_for_memory() and schedule_for_memory()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == [
        "--xla_cpu_enable_fast_math=false",
        *[f"--{name}={value}" for name, value in MEMORY_SCHEDULER.items()],
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT")
    assert not schedule_for_memory()
