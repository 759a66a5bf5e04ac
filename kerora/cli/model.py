"""A model with its adapter, for the commands that use one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(source: str, adapter: Path | None) -> Any:
    """The model of a source as a user names it, its adapter loaded."""
    from kerora.recipe import ModelRecipe
    from kerora.run_parts import load_model

    # Unchecked: loading says itself what is wrong with a source.
    model = load_model(ModelRecipe.model_construct(source=source))
    if adapter is not None:
        model.load_adapter(adapter)
    return model
