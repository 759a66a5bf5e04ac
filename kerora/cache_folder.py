"""Where kerora keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder `kerora` in the user's cache folder: `XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kerora"
