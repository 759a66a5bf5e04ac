"""`kerora recipe`."""

from __future__ import annotations


def recipe() -> None:
    """Print a commented recipe with every key and its default.

    Example: `kerora recipe > mine.yaml`
    """
    from kerora.recipe import commented_recipe

    print(commented_recipe(), end="")
