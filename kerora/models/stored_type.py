"""The number type in which a model's weights are stored."""

from __future__ import annotations

import os
from typing import Any

from kerora.models.converters import read_config, source_places
from kerora.models.gguf_model import is_gguf
from kerora.models.loading import resolve_source


def is_stored_in_bfloat16(source: str | os.PathLike[str]) -> bool:
    """Whether loading a model in bfloat16 rounds none of its weights.

    Args:
        source: As in `kerora.from_preset`.

    Returns:
        For a Hugging Face folder, whether all its tensors are bfloat16; for a KerasHub preset,
        whether its configuration says so. False for a GGUF file.

    Raises:
        ModelSourceError: If there is no such model, or its files are damaged.
    """
    name = resolve_source(source)
    if is_gguf(name):
        return False
    config = read_config(name)
    if "registered_name" in config:
        return _policy_name(config.get("config", {}).get("dtype")) == "bfloat16"
    return {place.type for place in source_places(name).values()} == {"BF16"}


def _policy_name(dtype: Any) -> Any:
    if isinstance(dtype, dict):
        return dtype.get("config", {}).get("name")
    return dtype
