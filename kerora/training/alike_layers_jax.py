"""Whether layers compute the same from values of their own, as the blocks of a decoder do. On JAX.

Told by all that a layer consists of: its class, its settings, those of its sublayers, and which
variable of what shape lies where. Nothing is assumed of what is not known: an object of somebody
else's is like itself alone, so that layers are told apart too often and never too seldom.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np

# What Keras keeps beside what a layer computes: names, locks, what it saw in earlier calls.
_BOOKKEEPING = {
    "_auto_config",
    "_base_quantize",
    "_build_shapes_dict",
    "_call_signature",
    "_called",
    "_inbound_nodes",
    "_lock",
    "_loss_ids",
    "_losses",
    "_losses_override",
    "_metrics",
    "_outbound_nodes",
    "_parent_path",
    "_path",
    "_tracker",
    "build",
    "name",
    "quantize",
}
_DESCRIBED_PACKAGES = {"keras", "keras_hub", "kerora"}
_PLAIN = (bool, int, float, complex, str, bytes, type, np.dtype, types.NoneType)


def computation(layers: Sequence[keras.layers.Layer], arguments: Any) -> Hashable:
    """What layers compute from the values of their variables and from arguments.

    Args:
        layers: Built layers. Their own `call`, if they have one beside their class', is left out.
        arguments: What they are called with: plain values and nests of them by value, tensors by
            identity.

    Returns:
        A description. Where two are equal, the first group of layers with the second one's values,
        `variables` in order, computes what the second one does. It holds for as long as the layers
        and arguments live and stay as they are.

    Example:

        computation([blocks[0]], ()) == computation([blocks[1]], ())
    """
    return _Description(layers)((list(layers), arguments))


class _Description:
    def __init__(self, layers: Sequence[keras.layers.Layer]) -> None:
        self._own_call = {id(layer) for layer in layers}
        variables = [variable for layer in layers for variable in layer.variables]
        self._places = {id(variable): place for place, variable in enumerate(variables)}
        # With the objects: an id is given out again when its object is gone.
        self._seen: dict[int, tuple[int, Any]] = {}

    def __call__(self, x: Any) -> Hashable:
        if isinstance(x, _PLAIN):
            return type(x), x
        if isinstance(x, keras.Variable):
            place = self._places.get(id(x), ("elsewhere", id(x)))
            return "variable", place, tuple(x.shape), x.dtype, x.trainable, x._autocast
        if isinstance(x, keras.initializers.Initializer):
            return "initializer"
        if isinstance(x, keras.random.SeedGenerator):
            return "seed", self(x.state)  # its first number is not what it draws from
        if isinstance(x, np.ndarray) and x.dtype != object:
            return "array", x.shape, str(x.dtype), x.tobytes()
        if id(x) in self._seen:
            return "seen", self._seen[id(x)][0]
        self._seen[id(x)] = len(self._seen), x
        return self._of_parts(x)

    def _of_parts(self, x: Any) -> Hashable:
        if isinstance(x, dict):
            return type(x), tuple((self(key), self(value)) for key, value in x.items())
        if isinstance(x, list | tuple):
            return type(x), tuple(map(self, x))
        if isinstance(x, set | frozenset):
            return type(x), frozenset(map(self, x))
        if isinstance(x, types.FunctionType):
            try:
                cells = [cell.cell_contents for cell in x.__closure__ or ()]
            except ValueError:  # one that holds nothing yet
                return "object", id(x)
            parts = (x.__defaults__, x.__kwdefaults__, cells)
            return "function", x.__code__, id(x.__globals__), self(parts)
        if isinstance(x, types.MethodType):
            return "method", self(x.__func__), self(x.__self__)
        if isinstance(x, functools.partial):
            return "partial", self((x.func, x.args, x.keywords))
        if type(x).__module__.split(".")[0] in _DESCRIBED_PACKAGES and hasattr(x, "__dict__"):
            left_out = _BOOKKEEPING | ({"call"} if id(x) in self._own_call else set())
            names = sorted(vars(x).keys() - left_out)
            return type(x), tuple((name, self(vars(x)[name])) for name in names)
        return "object", id(x)
