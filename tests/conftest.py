"""Puts the shared test helpers on the path; gives each process of tests a core and room."""

import gc
import importlib
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


def pytest_configure(config):
    """Files of tests, and the programs that they start, share models: what JAX compiled for one,
    however quickly, the others find. `pytest --cache-clear` deletes it."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if os.environ.get("KERAS_BACKEND", "jax") == "jax":
        # Of tests' small models the compiler's last passes take most of the time. Programs that
        # tests start are compiled as for users: this is not in their environment.
        importlib.import_module("jax").config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Whatever a test draws without a seed of its own (initial weights) is the same each time."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """What a file of tests compiled and loaded does not stay until the last one.

    What was there before, the imported libraries above all, is frozen meanwhile: Keras and the
    tests collect garbage often, and going through it each time took a fifth of their time.
    """
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "kerora.cpu_memory" in sys.modules:
        sys.modules["kerora.cpu_memory"].release_freed_memory()
