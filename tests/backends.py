"""Which tests run on which backend."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import pytest

ON_JAX = keras.backend.backend() == "jax"

once = pytest.mark.skipif(not ON_JAX, reason="is the same on every backend: tested on JAX")


# Plain, windowed and linear attention, experts, learned positions, encoders of text and of images,
# an encoder with a decoder, images with text.
DIVERSE = (
    *("llama", "gemma3", "gemma4", "qwen3_5", "mixtral", "gpt_oss", "gpt2"),
    *("bert", "dinov2", "swin", "t5gemma", "paligemma2"),
)


def families(names: Iterable[str]) -> list[str]:
    """All of them on JAX; on the other backends those that differ most in their layers."""
    return [name for name in names if ON_JAX or name in DIVERSE]
