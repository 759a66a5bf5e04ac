"""Positions of tokens, for backbones that take them as an input: KerasHub's Gemma 4."""

from __future__ import annotations

from typing import Any

from keras import ops

_INPUT = "position_ids"


def with_positions(backbone: Any, inputs: Any) -> Any:
    """The inputs of a backbone, with each token's place in its row where it asks for that.

    Rotary positions are relative, so that the examples of a packed row need no numbers of their
    own.

    Args:
        backbone: A KerasHub backbone.
        inputs: A dict with `token_ids` and `padding_mask`, integers of shape `(batch, length)`.
            Positions that are given stay, and so does anything else than a dict.
    """
    asked = any(tensor.name == _INPUT for tensor in backbone.inputs)
    if not asked or not isinstance(inputs, dict) or _INPUT in inputs:
        return inputs
    tokens = inputs["token_ids"]
    places = ops.arange(tokens.shape[1], dtype="int32")[None, :]
    return {**inputs, _INPUT: ops.broadcast_to(places, ops.shape(tokens))}
