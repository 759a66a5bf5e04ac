"""Causal attention within the segments of packed rows, for JAX.

On the CPU the score matrix is walked in square blocks, and a block that causality, the sliding
window or the borders between examples rule out altogether is never computed. The softmax is taken
online, as in FlashAttention (Dao et al., 2022, https://arxiv.org/abs/2205.14135): the forward pass
keeps the output and the logarithm of the softmax's denominator, and the backward pass makes the
probabilities again. Memory grows with the length of a row, not with its square.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kerora.training import attention_jax_fused as fused
from kerora.training.rematerialisation_jax import ATTENTION

_MASKED = -1e30


class _Shape(NamedTuple):
    """The static facts of one attention call."""

    scale: float
    soft_cap: float | None
    window: int | None
    block: int
    chunk: int


class _Plan(NamedTuple):
    """Which blocks of keys each block of queries looks at.

    Query blocks are numbered across rows and sorted by how many key blocks they need, so that the
    blocks of a chunk, which are computed together, need about as many.
    """

    order: jax.Array  # (chunks, chunk) numbers of query blocks
    trips: jax.Array  # (chunks,) key blocks needed, the diagonal one included
    segments: jax.Array  # (blocks, block) segment ids
    row_blocks: int


def segment_attention(
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
    """Causal softmax attention among the tokens of one segment, on the default device.

    Args and returned shape are those of `kerora.training.attention.segment_attention`.
    """
    arrays = query, key, value, segment_ids
    options: dict[str, Any] = {"scale": scale, "soft_cap": soft_cap, "window": window}
    platform = jax.default_backend()
    if platform == "cpu":
        return blockwise_attention(*arrays, **options, sinks=sinks)
    if platform == "tpu" and fused.splash_fits(query):
        return fused.splash_attention(*arrays, **options, sinks=sinks)
    if platform == "gpu":
        capability = str(jax.devices()[0].compute_capability)
        if fused.cudnn_fits(query, soft_cap, sinks, capability):
            return fused.cudnn_attention(*arrays, scale=scale, window=window)
    return fused.dense_attention(*arrays, **options, sinks=sinks)


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: jax.Array | None = None,
    block: int = 32,
    chunk: int = 4,
) -> jax.Array:
    """`segment_attention` in blocks of `block` queries and keys, `chunk` of them at a time."""
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    batch, length = query.shape[:2]
    row_blocks = -(-length // block)
    while batch * row_blocks % chunk:
        chunk -= 1
    shape = _Shape(float(scale), soft_cap, window, block, chunk)
    pad = row_blocks * block - length
    if pad:
        query, key, value = (
            jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]) for x in (query, key, value)
        )
        segment_ids = jnp.pad(segment_ids, [(0, 0), (0, pad)])
    out = _attention(shape, query, key, value, segment_ids, sinks)
    return out[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(shape, query, key, value, segment_ids, sinks):
    return _forward(shape, query, key, value, segment_ids, sinks)[0]


def _forward(shape, query, key, value, segment_ids, sinks):
    plan = _make_plan(shape, segment_ids)
    kv_heads = key.shape[2]
    q, k, v = (_to_blocks(x, kv_heads, shape.block) for x in (query, key, value))
    _, kv, rows, dim = q.shape

    def one_chunk(results, inputs):
        numbers, trips = inputs
        q_chunk = q[numbers]

        def one_key_block(distance, state):
            maximum, total, acc = state
            bias, chosen = _key_block(shape, plan, numbers, distance)
            scores = _dot("ckqd,cksd->ckqs", q_chunk, k[chosen])
            scores = scores.reshape(*q_chunk.shape[:2], -1, shape.block, shape.block)
            # The first block is the diagonal one, in which every real token sees itself: the
            # maximum is finite from there on, and what is masked becomes exactly 0.
            scores = _bounded(shape, scores) + bias[:, None, None]
            new_maximum = jnp.maximum(maximum, jnp.max(scores, -1))
            p = jnp.exp(scores - new_maximum[..., None])
            shrink = jnp.exp(maximum - new_maximum)
            p_flat = _flat(p).astype(v.dtype)
            acc = acc * shrink.reshape(acc.shape[:-1])[..., None] + _dot(
                "ckqs,cksd->ckqd", p_flat, v[chosen]
            )
            return new_maximum, total * shrink + jnp.sum(p, -1), acc

        lead = (shape.chunk, kv, rows // shape.block, shape.block)
        start = (
            jnp.full(lead, _MASKED, jnp.float32),
            jnp.zeros(lead, jnp.float32),
            jnp.zeros((shape.chunk, kv, rows, dim), jnp.float32),
        )
        maximum, total, acc = jax.lax.fori_loop(0, trips, one_key_block, start)
        tiny = jnp.finfo(jnp.float32).tiny
        lse = maximum + jnp.log(jnp.maximum(total, tiny))
        out = acc / jnp.maximum(total, tiny).reshape(acc.shape[:-1])[..., None]
        return tuple(_put(x, numbers, y) for x, y in zip(results, (out, lse), strict=True)), None

    lse_shape = (q.shape[0], kv, rows // shape.block, shape.block)
    results = jnp.zeros(q.shape, jnp.float32), jnp.zeros(lse_shape, jnp.float32)
    (out, lse), _ = jax.lax.scan(one_chunk, results, (plan.order, plan.trips))
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1)
        total = jnp.logaddexp(lse, sink)
        out = out * jnp.exp(lse - total).reshape(out.shape[:-1])[..., None]
        lse = total
    out = _of_real(_from_blocks(out, query.shape, shape.block), segment_ids).astype(query.dtype)
    out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, ATTENTION)
    return out, (query, key, value, segment_ids, sinks, out, lse)


def _backward(shape, saved, d_out):
    query, key, value, segment_ids, sinks, out, lse = saved
    d_out = _of_real(d_out, segment_ids)
    plan = _make_plan(shape, segment_ids)
    kv_heads = key.shape[2]
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1, keepdims=True)
    delta = _to_blocks(delta, kv_heads, shape.block).reshape(lse.shape)
    q, k, v, do = (_to_blocks(x, kv_heads, shape.block) for x in (query, key, value, d_out))

    def one_chunk(carry, inputs):
        numbers, trips = inputs
        q_chunk, do_chunk, lse_chunk, delta_chunk = (x[numbers] for x in (q, do, lse, delta))

        def one_key_block(distance, state):
            dq, dk, dv = state
            bias, chosen = _key_block(shape, plan, numbers, distance, keys_first=True)
            # Keys before queries: so only one of the three products below sums over an axis that
            # is not its first operand's last, for which XLA has no fast product.
            scores = _dot("cksd,ckqd->cksq", k[chosen], q_chunk)
            scores = _bounded(shape, scores.reshape(*scores.shape[:-1], -1, shape.block))
            bias = bias[:, None, :, None]
            p = jnp.exp(scores + bias - lse_chunk[:, :, None])
            dp = _dot("cksd,ckqd->cksq", v[chosen], do_chunk).reshape(p.shape)
            ds = p * (dp - delta_chunk[:, :, None])
            if shape.soft_cap is not None:
                ds = ds * (1.0 - jnp.square(scores / shape.soft_cap))
            ds, p = (x.reshape(*x.shape[:3], -1).astype(q.dtype) for x in (ds, p))
            dq = dq + _dot("cksq,cksd->ckqd", ds, k[chosen])
            dk = _add(dk, chosen, _dot("cksq,ckqd->cksd", ds, q_chunk))
            dv = _add(dv, chosen, _dot("cksq,ckqd->cksd", p, do_chunk))
            return dq, dk, dv

        all_dq, dk, dv = carry
        state = (jnp.zeros(q_chunk.shape, jnp.float32), dk, dv)
        dq, dk, dv = jax.lax.fori_loop(0, trips, one_key_block, state)
        return (_put(all_dq, numbers, dq), dk, dv), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    (dq, dk, dv), _ = jax.lax.scan(one_chunk, zeros, (plan.order, plan.trips))
    dq = _from_blocks(dq, query.shape, shape.block) * shape.scale
    dk = _from_blocks(dk, key.shape, shape.block) * shape.scale
    dv = _from_blocks(dv, value.shape, shape.block)
    d_sinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1) - lse)
        d_sinks = -jnp.sum(share * delta, axis=(0, 3)).reshape(sinks.shape).astype(sinks.dtype)
    return (
        dq.astype(query.dtype),
        dk.astype(key.dtype),
        dv.astype(value.dtype),
        None,
        d_sinks,
    )


_attention.defvjp(_forward, _backward)


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _add(blocks, chosen, update):
    """Adds `update[i]` to `blocks[chosen[i]]`, in place under XLA, one after the other."""
    for i in range(update.shape[0]):
        old = jax.lax.dynamic_index_in_dim(blocks, chosen[i], 0)
        blocks = jax.lax.dynamic_update_index_in_dim(blocks, old + update[i], chosen[i], 0)
    return blocks


def _put(blocks, numbers, new):
    """Sets `blocks[numbers[i]]` to `new[i]`, in place under XLA."""
    for i in range(new.shape[0]):
        blocks = jax.lax.dynamic_update_index_in_dim(blocks, new[i], numbers[i], 0)
    return blocks


def _of_real(x, segment_ids):
    """`x`, `(batch, length, heads, dim)`, with zeros where there is padding."""
    return jnp.where((segment_ids > 0)[..., None, None], x, 0)


def _flat(x):
    """`(chunk, kv_heads, groups, block, keys)` to `(chunk, kv_heads, groups * block, keys)`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _bounded(shape, scores):
    scores = scores * shape.scale
    if shape.soft_cap is not None:
        scores = jnp.tanh(scores / shape.soft_cap) * shape.soft_cap
    return scores


def _key_block(shape, plan, numbers, distance, keys_first=False):
    """Which blocks of keys lie `distance` before a chunk's queries, and who of them sees whom.

    Returns:
        What is added to the scores, `(chunk, queries, keys)` or with the keys first, and the
        numbers of the blocks, `(chunk,)`.
    """
    block, row_blocks = shape.block, plan.row_blocks
    within = numbers % row_blocks - distance  # negative: before the row's start
    chosen = numbers - numbers % row_blocks + jnp.maximum(within, 0)
    of_query, of_key = (-2, -1) if keys_first else (-1, -2)  # the axes that each lacks
    query, key = (jnp.expand_dims(jnp.arange(block), axis) for axis in (of_query, of_key))
    offset = query - key + distance * block
    mask = offset >= 0
    if shape.window is not None:
        mask = mask & (offset < shape.window)
    seg_q = jnp.expand_dims(plan.segments[numbers], of_query)
    seg_k = jnp.expand_dims(plan.segments[chosen], of_key)
    mask = mask & (seg_q == seg_k) & (seg_q > 0) & (within >= 0)[:, None, None]
    # Made once for all heads: XLA would make it again in each loop over the scores.
    return jax.lax.optimization_barrier(jnp.where(mask, 0.0, _MASKED)), chosen


def _make_plan(shape, segment_ids):
    batch, length = segment_ids.shape
    row_blocks = length // shape.block
    index = jnp.arange(length)
    new = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], [(0, 0), (1, 0)], constant_values=True)
    first = jax.lax.cummax(jnp.where(new, index, 0), axis=1)
    if shape.window is not None:
        first = jnp.maximum(first, index - shape.window + 1)
    first = jnp.where(segment_ids > 0, first, length)
    first_block = jnp.min(first.reshape(batch, row_blocks, shape.block), -1) // shape.block
    trips = jnp.maximum(jnp.arange(row_blocks) - first_block + 1, 0).reshape(-1)
    order = jnp.argsort(-trips)
    return _Plan(
        order=order.reshape(-1, shape.chunk),
        trips=jnp.max(trips[order].reshape(-1, shape.chunk), -1),
        segments=segment_ids.reshape(-1, shape.block),
        row_blocks=row_blocks,
    )


def _to_blocks(x, kv_heads, block):
    """`(batch, length, heads, dim)` to `(blocks, kv_heads, groups * block, dim)`."""
    batch, length, heads, dim = x.shape
    x = x.reshape(batch, length // block, block, kv_heads, heads // kv_heads, dim)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(-1, kv_heads, heads // kv_heads * block, dim)


def _from_blocks(x, shape, block):
    batch, length, heads, dim = shape
    kv_heads = x.shape[1]
    x = x.reshape(batch, length // block, kv_heads, heads // kv_heads, block, dim)
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(shape)
