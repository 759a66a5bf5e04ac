"""The fused attention kernels that come with JAX, given the segments of packed rows.

On a TPU the Splash kernel of Pallas takes segment ids, windows, soft caps and sinks itself. On a
GPU cuDNN's flash attention takes a mask of the pairs of tokens, one for all heads. What neither
takes is written out with the whole score matrix.

Tested without either device: the TPU kernel in Pallas' interpreter and its lowering. The cuDNN path
has not been run.
"""

from typing import Any

import jax
import jax.numpy as jnp

LANES = 128  # Splash wants whole vector registers: rows and heads of multiples of this.


def splash_fits(query: jax.Array) -> bool:
    """Whether a TPU can take these rows as they are."""
    return query.shape[1] % LANES == 0


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Segment attention by the Splash kernel, or by its interpreter; see `attention.py`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    groups = heads // kv_heads
    square = (length, length)
    mask = (
        masks.CausalMask(square) if window is None else masks.LocalMask(square, (window - 1, 0), 0)
    )
    kernel = kernels.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * groups),
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )
    pad = [(0, 0), (0, 0), (0, 0), (0, -dim % LANES)]
    q, k, v = (jnp.pad(x, pad).swapaxes(1, 2) for x in (query * scale, key, value))
    q = q.reshape(batch, kv_heads, groups, length, -1)
    ids = kernels.SegmentIds(q=segment_ids, kv=segment_ids)
    sinks = None if sinks is None else sinks.reshape(kv_heads, groups).astype(jnp.float32)

    def of_row(q: Any, k: Any, v: Any, ids: Any) -> Any:
        if sinks is None:
            return jax.vmap(lambda q, k, v: kernel(q, k, v, ids))(q, k, v)
        return jax.vmap(lambda q, k, v, s: kernel(q, k, v, ids, s))(q, k, v, sinks)

    out = jax.vmap(of_row)(q, k, v, ids).reshape(batch, heads, length, -1)
    return _without_padding(out.swapaxes(1, 2)[..., :dim], segment_ids).astype(query.dtype)


def cudnn_fits(
    query: jax.Array, soft_cap: float | None, sinks: jax.Array | None, capability: str
) -> bool:
    """Whether cuDNN has a flash kernel for this type, these shapes and options.

    Args:
        query: (batch, length, heads, width).
        soft_cap: Of the scores.
        sinks: Of the heads.
        capability: Of the device, `"8.0"` (Ampere) or more; AMD's have other names.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    length, width = query.shape[1], query.shape[-1]
    shapes = length % 2 == 0 and width % 8 == 0 and width <= 128
    major = capability.split(".")[0]
    device = major.isdigit() and int(major) >= 8
    return half and shapes and device and soft_cap is None and sinks is None


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """Segment attention by cuDNN; see `attention.py`."""
    # A padding token sees its own kind, since a softmax over nothing would not be a number.
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return _without_padding(out, segment_ids)


def dense_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Segment attention written out, with the whole score matrix; see `attention.py`."""
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores * scale
    if soft_cap is not None:
        scores = jnp.tanh(scores / soft_cap) * soft_cap
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    mask = (distance >= 0) & (distance < (window or length))
    mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(sink, (*scores.shape[:-1], 1))], -1)
    p = jax.nn.softmax(scores, -1)[..., :length].astype(value.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", p, value).reshape(query.shape)
    return _without_padding(out, segment_ids)


def _without_padding(out: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return jnp.where(segment_ids[:, :, None, None] > 0, out, jnp.zeros_like(out))
