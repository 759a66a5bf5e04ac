"""Puts the shared test helpers on the path; gives each process of tests a core and room."""

import gc
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

# PyTorch's threads wait for each other actively, and two processes of two threads on two cores
# stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Whatever a test draws without a seed of its own (initial weights) is the same each time."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """What a file of tests compiled and loaded does not stay until the last one."""
    yield
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "kerora.cpu_memory" in sys.modules:
        sys.modules["kerora.cpu_memory"].release_freed_memory()
