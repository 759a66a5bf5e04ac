"""Which tests run on which backend."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import pytest

BACKEND = keras.backend.backend()

once = pytest.mark.skipif(BACKEND != "jax", reason="is the same on every backend: tested on JAX")
# Of many models, each called a few times, JAX compiles for longer than the tests take.
once_uncompiled = pytest.mark.skipif(
    BACKEND != "torch", reason="is the same on every backend: tested on PyTorch, without compiling"
)


# Plain, windowed and linear attention, experts, learned positions, encoders of text and of images,
# an encoder with a decoder, images with text.
DIVERSE = (
    *("llama", "gemma3", "gemma4", "qwen3_5", "mixtral", "gpt_oss", "gpt2"),
    *("bert", "dinov2", "swin", "t5gemma", "paligemma2"),
)


def families(names: Iterable[str]) -> list[str]:
    """All of them on PyTorch, which compiles none; on the other backends those that differ most."""
    return [name for name in names if BACKEND == "torch" or name in DIVERSE]
