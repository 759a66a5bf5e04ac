"""Compiled code that outlives the process."""

from __future__ import annotations

import os
from pathlib import Path


def keep_compiled_code() -> None:
    """On JAX, keep what is compiled in the user's cache folder, for the next run to find.

    The folder is `kerora/compiled` in `XDG_CACHE_HOME`, else in `~/.cache`; the variable
    `JAX_COMPILATION_CACHE_DIR` names another. Other backends compile little.
    """
    import keras

    if keras.backend.backend() != "jax" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache / "kerora" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
