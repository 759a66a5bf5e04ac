"""Causal attention within the segments of packed rows, for PyTorch.

`scaled_dot_product_attention` takes the mask of the segments and picks its kernel by device: the
flash kernel for the CPU, memory-efficient attention on a GPU. What it has no argument for, soft
caps and sinks, is written out.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F


def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment_ids: torch.Tensor,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: Any = None,
) -> torch.Tensor:
    """Causal softmax attention among the tokens of one segment; see `attention.py`.

    Args and returned shape are those of `kerora.training.attention.segment_attention`.
    """
    mask = _mask(segment_ids, window)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if soft_cap is None and sinks is None:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    else:
        out = _written_out(q, k, v, mask, scale, soft_cap, sinks)
    out = out.transpose(1, 2)
    return torch.where(segment_ids[:, :, None, None] > 0, out, torch.zeros_like(out))


def _mask(segment_ids: torch.Tensor, window: int | None) -> torch.Tensor:
    """`(batch, 1, length, length)`, true where a query sees a key."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    offset = index[:, None] - index[None, :]
    seen = offset >= 0
    if window is not None:
        seen = seen & (offset < window)
    # A padding token sees itself: a row of the softmax that sees nothing would not be a number.
    return (seen & (segment_ids[:, :, None] == segment_ids[:, None, :]))[:, None]


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    soft_cap: float | None,
    sinks: Any,
) -> torch.Tensor:
    batch, heads, length, dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, length, dim)
    scores = torch.einsum("bkgtd,bksd->bkgts", grouped, k).float() * scale
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    scores = scores.masked_fill(~mask[:, :, None], -math.inf)
    if sinks is not None:
        sink = sinks.float().reshape(1, k.shape[1], -1, 1, 1)
        scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], -1)
    p = torch.softmax(scores, -1)[..., :length].to(v.dtype)
    return torch.einsum("bkgts,bksd->bkgtd", p, v).reshape(batch, heads, length, dim)
