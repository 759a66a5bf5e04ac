"""A model with its adapter, for the commands that use one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def check_adapter_place(place: Path | None) -> None:
    """Look whether an adapter is there, before the seconds that imports and loading take.

    Raises:
        ValueError: There is none, or its folder is one level below.
    """
    place = place and place.expanduser()
    if place is None or place.is_file():  # KerasHub's .lora.h5
        return
    inner = place / "adapter"
    if not _holds_adapter(place) and _holds_adapter(inner):
        raise ValueError(f"'{place}' is a run folder. Give its adapter: '{inner}'")
    # Loading puts back what a writer had moved aside when it was cut off.
    real = Path(os.path.realpath(place))
    if not real.exists() and not real.with_name(f".{real.name}.replaced").exists():
        raise ValueError(
            f"there is no adapter folder '{place}' (from {os.getcwd()}). A run leaves its own in "
            "DIR/adapter, DIR being the output of `kerora train`"
        )


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load(source: str, adapter: Path | None) -> Any:
    """The model of a source as a user names it, its adapter loaded."""
    from kerora.recipe import ModelRecipe
    from kerora.run_parts import load_model

    # Unchecked: loading says itself what is wrong with a source.
    model = load_model(ModelRecipe.model_construct(source=source))
    if adapter is not None:
        model.load_adapter(adapter)
    return model
