"""What JAX compiles is found by the next process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from backends import once

pytestmark = once

THRESHOLD = """
import jax
import kerora
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""

COMPILE = """
{before}
import kerora
import jax

# However fast this machine compiles, it is kept.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

def wave(x):
    for n in range(400):
        x = jax.numpy.sin(x * n) + x
    return x

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(wave)(1.0)
print(sum("cache_hit" in name for name in events))
"""


def printed(program, folder, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "KERAS_BACKEND": "jax", "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


def hits(folder, before="", **environment):
    return printed(COMPILE.format(before=before), folder, **environment)


@pytest.mark.parametrize("before", ["", "import jax"])
def test_the_next_process_finds_it(tmp_path, before):
    assert hits(tmp_path, before) == 0
    assert any((tmp_path / "kerora" / "compiled").iterdir())
    assert hits(tmp_path, before) > 0


def test_a_folder_that_the_user_chose_stays(tmp_path):
    chosen = f"import jax; jax.config.update('jax_compilation_cache_dir', {str(tmp_path / 'a')!r})"
    hits(tmp_path, chosen)
    hits(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "b"))
    assert not Path(tmp_path / "kerora").exists()


def test_how_long_the_user_lets_compiling_take_unkept_stays(tmp_path):
    assert printed(THRESHOLD, tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="7") == 7
