"""The files that come with kerora: the small preset `tiny_gemma`, its text and its instructions."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kerora.cache_folder import cache_folder
from kerora.models.tiny_corpus.files import write_pretraining_text

_FOLDER = Path(__file__).parent
_PRETRAINING = "tiny_gemma/pretraining.jsonl"
BUNDLED_NAMES = (
    "tiny_gemma",
    "tiny_gemma/train.jsonl",
    "tiny_gemma/heldout.jsonl",
    _PRETRAINING,
)


def bundled_path(name: str) -> Path:
    """Where a bundled preset or data file lies.

    `tiny_gemma` is a KerasHub preset folder; `tiny_gemma/train.jsonl` and
    `tiny_gemma/heldout.jsonl` are its instruction set. `tiny_gemma/pretraining.jsonl` is the text
    that it was trained on: too large to ship, it is written anew, always the same, into `kerora/`
    in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), which takes a second.

    Args:
        name: one of `BUNDLED_NAMES`.

    Raises:
        ValueError: nothing of that name is bundled.

    Example:

    ```python
    model = keras_hub.models.CausalLM.from_preset(str(bundled_path("tiny_gemma")))
    ```
    """
    if name not in BUNDLED_NAMES:
        raise ValueError(
            f"No bundled file of this name. Expected one of {', '.join(BUNDLED_NAMES)}. "
            f"Received: {name!r}"
        )
    return _write_to_cache(name) if name == _PRETRAINING else _FOLDER / name


def _write_to_cache(name: str) -> Path:
    path = cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place once complete: another process may be reading the file.
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    os.close(handle)
    write_pretraining_text(Path(partial))
    os.replace(partial, path)
    return path
