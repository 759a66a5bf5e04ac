"""A layer with other values of some attributes, while the layer itself stays as it is."""

from __future__ import annotations

from typing import Any

import keras


def stand_in(layer: keras.layers.Layer, **attributes: Any) -> Any:
    """What `call` of a layer's class may be given as `self` in the layer's place.

    The layer is not touched, so that several threads may call it at once. All else is the layer's
    own: its variables, its sublayers, its containers.

    Args:
        layer: Any layer.
        **attributes: Values that the stand-in has in place of the layer's.

    Example:
    ```python
    linear = keras.layers.Dense.call(stand_in(dense, activation=None), inputs)
    ```
    """
    copied = object.__new__(type(layer))
    # Past Keras' `__setattr__`, which would track the values. PyTorch keeps layers elsewhere, and
    # looks here first.
    vars(copied).update(vars(layer), **attributes)
    return copied
