"""The order in which a GGUF file keeps the heads of some matrices.

Two orders differ from that of `transformers`. llama.cpp's Llama and SmolLM3 rotate neighbouring
pairs of a head where `transformers` rotates its halves, so the rows of their queries and keys are
permuted. And the linear attention of Qwen 3.5 has several heads of values for each of keys:
`transformers` keeps those of one key together, llama.cpp the first ones of all keys, then the
second ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_PAIRED = ("llama", "smollm3")
_OF_VALUES = (
    *(
        "linear_attn.in_proj_qkv.weight",
        "linear_attn.conv1d.weight",
        "linear_attn.in_proj_z.weight",
    ),
    "linear_attn.out_proj.weight",
)
_OF_VALUE_HEADS = (
    *("linear_attn.in_proj_a.weight", "linear_attn.in_proj_b.weight"),
    *("linear_attn.A_log", "linear_attn.dt_bias"),
)


@dataclass(frozen=True)
class Heads:
    """The heads of a model, under the names of a Hugging Face config.

    Attributes:
        head_dim: Length of a head.
        linear_num_key_heads: Heads of keys in a layer of linear attention, if the model has some.
        linear_num_value_heads: Heads of values there, a multiple of those of keys.
        linear_key_head_dim: Length of a head of keys there.
        linear_value_head_dim: Length of a head of values there.
    """

    head_dim: int
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Heads:
        """Those of a Hugging Face config, or of what has the same fields."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})


def stored_order(arch: str, name: str, heads: Heads, rows: int) -> tuple[int, np.ndarray] | None:
    """Where a GGUF file keeps the rows, or columns, of a Hugging Face tensor.

    Args:
        arch: The GGUF architecture, such as `"llama"`.
        name: The Hugging Face name of the tensor.
        heads: Of the model.
        rows: Number of the tensor's rows.

    Returns:
        The axis, and for each of its entries the one of the file's tensor; None where the order is
        the same.
    """
    part = name.split(".", 3)[-1]
    if arch in _PAIRED and part in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
        return 0, np.arange(rows).reshape(-1, heads.head_dim // 2, 2).swapaxes(1, 2).ravel()
    if part in _OF_VALUE_HEADS:
        return 0, _grouped(heads, 1)
    if part not in _OF_VALUES:
        return None
    order = _grouped(heads, heads.linear_value_head_dim)
    if part.endswith("out_proj.weight"):
        return 1, order
    before = rows - order.size  # queries and keys, where they are in the same matrix
    return 0, np.concatenate([np.arange(before), before + order])


def _grouped(heads: Heads, length: int) -> np.ndarray:
    keys = heads.linear_num_key_heads
    tiled = np.arange(heads.linear_num_value_heads * length).reshape(-1, keys, length)
    return tiled.swapaxes(0, 1).ravel()
