"""What a backbone's layers compute as its Hugging Face folder says, and no KerasHub preset holds.

KerasHub builds a preset's layers from the backbone's own configuration. What they were given beside
it is lost there, so the backbone keeps the names of it, and whoever saves a preset is told.
"""

from __future__ import annotations

import functools
from typing import Any

import keras

from kerora.user_warning import warn_user


def set_on_layer(backbone: keras.Model, layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Set an attribute of one of a backbone's layers, and note its name where it was another."""
    if getattr(layer, name) != value:
        setattr(layer, name, value)
        note_set(backbone, name)


def note_set(backbone: keras.Model, *names: str) -> None:
    """Note what a preset of this backbone would lose, by names that a user knows."""
    known = getattr(backbone, "set_on_its_layers", ())
    backbone.set_on_its_layers = tuple(sorted({*known, *names}))


def warn_of_set(backbone: keras.Model) -> None:
    """Tell whoever saves a preset what it loses, if anything."""
    if names := getattr(backbone, "set_on_its_layers", ()):
        warn_user(
            f"A KerasHub preset has no place for {', '.join(names)} as this model's Hugging "
            "Face folder has them: loaded from the preset, it gives other answers. Save an "
            "adapter instead, and `kerora merge` it into that folder."
        )


def warning_when_saved(backbone: Any) -> Any:
    """A backbone of KerasHub's own class, which now warns in `save_to_preset` if it is to."""
    if not getattr(backbone, "set_on_its_layers", ()):
        return backbone
    save = backbone.save_to_preset

    @functools.wraps(save)
    def save_to_preset(*args: Any, **kwargs: Any) -> None:
        warn_of_set(backbone)
        save(*args, **kwargs)

    backbone.save_to_preset = save_to_preset
    return backbone
