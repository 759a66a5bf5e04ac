"""Steps do not take more and more memory."""

import os
import subprocess
import sys

import keras
import pytest

if keras.backend.backend() != "jax" or sys.platform != "linux":
    pytest.skip("JAX's steps with glibc's allocator", allow_module_level=True)

# As XLA does: two aligned blocks at a time, beside which something small stays for good.
STEPS = """
import ctypes, sys
import kerora
from kerora.cpu_memory import keep_freed_memory
from kerora.training.step_memory_jax import StepMemory, _resident_bytes

library = ctypes.CDLL("libc.so.6")
for function in (library.aligned_alloc, library.malloc):
    function.restype = ctypes.c_void_p
library.aligned_alloc.argtypes = [ctypes.c_size_t] * 2
library.malloc.argtypes = library.free.argtypes = library.memset.argtypes = None
SIZE = 2**26

def step():
    blocks = [library.aligned_alloc(64, SIZE) for _ in range(2)]
    for block in blocks:
        library.memset(ctypes.c_void_p(block), 1, ctypes.c_size_t(SIZE))
        for size in (16, 32, 48, 64, 80) * 20:
            library.malloc(ctypes.c_size_t(size))
    for block in blocks:
        library.free(ctypes.c_void_p(block))

memory = StepMemory() if sys.argv[1] == "watched" else None
keep_freed_memory()
before, most = _resident_bytes(), 0
for _ in range(20):
    step()
    if memory:
        memory.after_step()
    most = max(most, _resident_bytes() - before)
print(most / SIZE)
"""


def printed(program, argument, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        env={**os.environ, "KERAS_BACKEND": "jax", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_a_process_keeps_what_a_step_takes():
    if printed(STEPS, "alone") < 4:
        pytest.skip("this C library puts a block where one of its size was")
    assert printed(STEPS, "watched") < 3.5


# Small blocks that were freed, under one that is kept: the C library holds on to them all.
COMPILE = """
import ctypes, sys
import jax
import kerora
from kerora.cpu_memory import keep_freed_memory
from kerora.training import step_memory_jax
from kerora.training.step_memory_jax import StepMemory, _resident_bytes

library = ctypes.CDLL("libc.so.6")
library.malloc.restype = ctypes.c_void_p
SIZE, COUNT = 2**12, 50_000

step_memory_jax._LONG = 0.0
if sys.argv[1] == "watched":
    StepMemory()
keep_freed_memory()
before = _resident_bytes()
blocks = [library.malloc(ctypes.c_size_t(SIZE)) for _ in range(COUNT)]
kept = library.malloc(ctypes.c_size_t(SIZE))
for block in blocks:
    ctypes.memset(block, 1, SIZE)
    library.free(ctypes.c_void_p(block))
jax.jit(lambda x: jax.numpy.sin(x @ x)).lower(jax.numpy.ones((64, 64))).compile()
print((_resident_bytes() - before) / (SIZE * COUNT))
"""


def test_what_compiling_took_goes_back(tmp_path):
    alone, watched = (
        printed(COMPILE, how, JAX_COMPILATION_CACHE_DIR=str(tmp_path / how))
        for how in ("alone", "watched")
    )
    assert alone > 0.9, "this C library keeps nothing"
    assert watched < 0.5
