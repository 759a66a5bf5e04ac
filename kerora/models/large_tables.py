"""Filling a large table a few rows at a time, so that memory never holds it twice.

On JAX and PyTorch; TensorFlow's variables take new values as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from kerora.models.huggingface_folder import TensorPlace

LARGE_BYTES = 2**26
"""From this size on (64 MiB) a second copy would show in the peak of a load."""
_BLOCK_BYTES = 2**24


def is_large(variable: keras.Variable, place: TensorPlace) -> bool:
    """Whether `fill_rows` should fill a variable: it is large, and stored as it will be."""
    same = tuple(variable.shape) == place.shape and place.dtype is not None
    large = len(place.shape) > 1 and place.size >= LARGE_BYTES
    return same and large and keras.backend.backend() in ("jax", "torch")


def fill_rows(variable: keras.Variable, place: TensorPlace) -> None:
    """Set a variable to a tensor of a safetensors file, block by block along its first axis.

    Args:
        variable: Of the tensor's shape.
        place: Where the tensor lies.

    Example:
    ```python
    fill_rows(backbone.token_embedding.embeddings, places["model.embed_tokens.weight"])
    ```
    """
    if keras.backend.backend() == "jax":
        from kerora.models.large_tables_jax import filled

        variable.assign(filled(variable.value, _blocks(place)))
    else:
        for start, block in _blocks(place):
            rows = keras.ops.convert_to_tensor(block, dtype=variable.dtype)
            variable.value.data[start : start + len(block)] = rows


def _blocks(place: TensorPlace) -> Iterator[tuple[int, np.ndarray]]:
    """Rows in their own type, and the row at which they begin."""
    rows = max(1, _BLOCK_BYTES // (place.size // place.rows))
    for start in range(0, place.rows, rows):
        stop = min(start + rows, place.rows)
        yield start, place.read_rows(start, stop).reshape(stop - start, *place.shape[1:])
