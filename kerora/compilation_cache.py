"""JAX's compiled code, kept for the next process."""

import os
import sys

from kerora.cache_folder import cache_folder


def keep_compiled_code() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, and find it there.

    The folder is `kerora/compiled` in `XDG_CACHE_HOME`, else in `~/.cache`. One that the user has
    chosen stays: by `JAX_COMPILATION_CACHE_DIR`, or in `jax.config`. Call before JAX compiles
    anything; it need not be imported.
    """
    jax = sys.modules.get("jax")
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or (
        jax and jax.config.jax_compilation_cache_dir
    ):
        return
    settings = {
        "jax_compilation_cache_dir": str(cache_folder() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        if name.upper() in os.environ:
            continue
        # JAX reads its variables once, when it is imported.
        os.environ[name.upper()] = str(value)
        if jax:
            jax.config.update(name, value)
