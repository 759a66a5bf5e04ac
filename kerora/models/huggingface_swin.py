"""What KerasHub's Swin leaves out of a Hugging Face configuration.

KerasHub shifts the windows of an image before it fills the last ones up, and halves the grid of
patches downwards; `transformers` fills up first, and halves upwards. Where nothing needs filling up
they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kerora.models.errors import inexpressible

_ONLY = {"hidden_act": "gelu", "use_absolute_embeddings": False}
# Each block has an index for each pair of a window's patches: in all window_size**4.
_WIDEST_WINDOW = 64


def check_swin(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's Swin cannot compute.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    for field, value in _ONLY.items():
        if config.get(field, value) != value:
            raise inexpressible("swin", field, config[field], value)
    if config["window_size"] > _WIDEST_WINDOW:
        expected = f"at most {_WIDEST_WINDOW}"
        raise inexpressible("swin", "window_size", config["window_size"], expected)
    step = config["patch_size"] * config["window_size"] * 2 ** (len(config["depths"]) - 1)
    if config["image_size"] % step:
        expected = f"a multiple of {step}, so that each stage is whole windows of its patches"
        raise inexpressible("swin", "image_size", config["image_size"], expected)


def configured_norms(backbone: keras.Model) -> Iterator[keras.layers.Layer]:
    """The norms that have the configuration's `layer_norm_eps`; those of patches have their own.

    Args:
        backbone: A `keras_hub.models.SwinTransformerBackbone`.
    """
    for stage in backbone.stages:
        for block in stage.blocks:
            yield from (block.norm1, block.norm2)
    yield backbone.norm
