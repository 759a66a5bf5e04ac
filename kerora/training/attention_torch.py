"""Causal attention within the segments of packed rows, for PyTorch.

`scaled_dot_product_attention` picks its kernel by device. On the CPU each segment is handed to its
flash kernel alone, so that nothing is computed between segments; on a GPU, where the segments'
borders are not known without waiting for the device, it takes their mask. What it has no argument
for, soft caps and sinks, is written out.
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
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if soft_cap is not None or sinks is not None:
        out = _written_out(q, k, v, _mask(segment_ids, window), scale, soft_cap, sinks)
    elif query.device.type == "cpu":
        rows = zip(q.split(1), k.split(1), v.split(1), segment_ids, strict=True)
        out = torch.cat([_by_segment(*row, scale, window) for row in rows])
    else:
        mask = _mask(segment_ids, window)
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    out = out.transpose(1, 2)
    return torch.where(segment_ids[:, :, None, None] > 0, out, torch.zeros_like(out))


def _by_segment(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_ids: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of one row, `(1, heads, length, dim)`, segment after segment."""
    lengths = torch.unique_consecutive(segment_ids, return_counts=True)[1].tolist()
    outs = []
    for query, key, value in zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True):
        length, mask = query.shape[2], None
        if window is not None and length > window:
            mask = _mask(segment_ids.new_ones((1, length)), window)
        outs.append(
            F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
        )
    return torch.cat(outs, 2)


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
