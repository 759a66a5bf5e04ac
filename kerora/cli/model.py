"""A model with its adapter, and the encoder of its prompts, for commands that use one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(source: str, adapter: Path | None, force: bool = False) -> Any:
    """The model of a source as a user names it, its adapter loaded."""
    from kerora.recipe import ModelRecipe
    from kerora.recipe_errors import RecipeError
    from kerora.run_parts import load_model

    try:
        recipe = ModelRecipe(source=source)
    except ValueError as error:
        raise RecipeError(str(error.errors()[0]["ctx"]["error"])) from None  # type: ignore[attr-defined]
    model = load_model(recipe)
    if adapter is not None:
        model.load_adapter(adapter)
    return model
