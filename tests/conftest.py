"""Puts the shared test helpers on the path; gives each process of tests a core and room."""

import gc
import os
import sys
from pathlib import Path

import pytest

# PyTorch's threads wait for each other actively, and two processes of two threads on two cores
# stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """What a file of tests compiled and loaded does not stay until the last one."""
    yield
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "kerora.cpu_memory" in sys.modules:
        sys.modules["kerora.cpu_memory"].release_freed_memory()
