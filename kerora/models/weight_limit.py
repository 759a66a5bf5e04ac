"""That a configuration builds no model larger than the weights that are to fill it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import keras

from kerora.models.errors import ModelSourceError

# What no file stores: seeds, counters, position tables that are computed.
_ALLOWANCE = 2**20


@contextlib.contextmanager
def weights_limited(values: int, source: str) -> Iterator[None]:
    """Within this context models of more than `values` values are not built.

    Whatever field of whatever configuration asks for too much, it asks by way of `add_weight`, and
    is refused before its memory is taken.

    Args:
        values: How many values the files hold.
        source: Where the configuration comes from, for the message.

    Raises:
        ModelSourceError: When a layer asks for more.
    """
    add_weight = keras.layers.Layer.add_weight
    left = values + _ALLOWANCE

    def add_limited_weight(self, shape=None, *args, **kwargs):
        nonlocal left
        size = math.prod(shape) if isinstance(shape, tuple | list) else 1
        left -= size
        if left < 0:
            raise ModelSourceError(
                f"The config.json of '{source}' asks for a model of more values than its weights "
                f"hold ({values} at most): the layer '{self.name}' wants {size} more, of shape "
                f"{tuple(shape or ())}."
            )
        return add_weight(self, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = add_limited_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight
