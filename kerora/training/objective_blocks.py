"""The passes over the vocabulary for backends that compile static shapes: JAX and TensorFlow.

Supervised tokens come first, in chunks of a static size whose number follows their count, so that
a token without loss costs nothing. Nothing here is differentiated: the caller wraps the passes in
a gradient of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from keras import ops

from kerora.training.objective_head import Table

if TYPE_CHECKING:
    from kerora.training.objective import TokenObjective


@dataclasses.dataclass(frozen=True)
class Blocking:
    """Static sizes of the passes.

    Attributes:
        chunk: Tokens taken at once while there are that many.
        remainder: The rest is taken at once, rounded up to a multiple of this divisor of `chunk`.
        block: Entries of the vocabulary taken at once.
    """

    chunk: int
    remainder: int
    block: int


# A CPU's block of float32 logits (2 MB) stays in its cache; an accelerator wants large products.
CPU_BLOCKING = Blocking(chunk=512, remainder=64, block=1024)
ACCELERATOR_BLOCKING = Blocking(chunk=2048, remainder=256, block=8192)


class Tokens(NamedTuple):
    """Supervised tokens first, filled up to whole chunks with tokens of weight 0.

    Attributes:
        features: One (N, k) each table.
        labels: int32 (N,).
        weights: float32 (N,).
        count: Number of supervised tokens, an int32 scalar.
        position: Where each token of the batch went, int32 (tokens,).
    """

    features: tuple[Any, ...]
    labels: Any
    weights: Any
    count: Any
    position: Any


class Forward(NamedTuple):
    """What the forward pass gives: sums, log-partition (N,), and gradients of the features."""

    loss_sum: Any
    correct_sum: Any
    log_partition: Any
    gradients: tuple[Any, ...]


class Running(NamedTuple):
    """State of the online softmax over the blocks, for the tokens (T,) of a chunk.

    Attributes:
        maximum: Largest logit so far, the label's included.
        other: Largest logit so far, the label's left out.
        total: Σ exp(logit - maximum), the label's left out.
        logit_sum: Σ logit, for label smoothing.
        gradients: Σ exp(logit - maximum) · dlogit/dfeature for each feature, if asked for.
        uniform: Σ dlogit/dfeature for each feature, for label smoothing.
    """

    maximum: Any
    other: Any
    total: Any
    logit_sum: Any
    gradients: tuple[Any, ...]
    uniform: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class BlockPasses:
    """The forward and backward pass of one objective.

    Attributes:
        objective: What is added up for each token.
        vocabulary_size: Number of logits.
        blocking: Static sizes.
        product: `product(a, b, axis_a, axis_b)`: contracts one axis of each of two matrices,
            float32.
    """

    objective: TokenObjective
    vocabulary_size: int
    blocking: Blocking
    product: Callable[[Any, Any, int, int], Any]

    def supervised_first(self, features: Sequence[Any], labels: Any, weights: Any) -> Tokens:
        """Order the tokens of a batch (features (tokens, k), labels and weights (tokens,))."""
        supervised = ops.cast(ops.not_equal(weights, 0), "int32")
        order = ops.argsort(1 - supervised)
        count = ops.sum(supervised)
        # TensorFlow may learn the batch's size only when it runs.
        length, remainder = labels.shape[0], self.blocking.remainder
        padding = remainder if length is None else -length % remainder
        if length is not None and length + padding == self.blocking.chunk:
            # XLA takes work on all tokens at once out of its loop, and does it even if the loop
            # is never entered.
            padding += remainder

        def arrange(values: Any) -> Any:
            rows = ops.take(values, order, axis=0)
            return ops.pad(rows, [(0, padding)] + [(0, 0)] * (len(rows.shape) - 1))

        return Tokens(
            tuple(arrange(f) for f in features),
            ops.clip(arrange(labels), 0, self.vocabulary_size - 1),
            arrange(weights),
            count,
            ops.argsort(order),
        )

    def forward(self, tokens: Tokens, tables: Sequence[Table], emits: bool) -> Forward:
        """Sums over all tokens; with `emits`, also the gradients of the features."""

        def body(start: Any, size: int, total: Forward) -> Forward:
            features = [_rows(f, start, size) for f in tokens.features]
            labels, weights = (_rows(v, start, size) for v in (tokens.labels, tokens.weights))
            loss, correct, log_partition, grads = self._forward(features, labels, tables, emits)
            return Forward(
                total.loss_sum + ops.sum(weights * loss),
                total.correct_sum + ops.sum(weights * ops.cast(correct, "float32")),
                ops.slice_update(total.log_partition, (start,), log_partition),
                tuple(
                    ops.slice_update(g, (start, 0), ops.cast(weights[:, None] * new, g.dtype))
                    for g, new in zip(total.gradients, grads, strict=emits)
                ),
            )

        zero = ops.zeros((), "float32")
        gradients = tuple(ops.zeros_like(f) for f in tokens.features) if emits else ()
        start = Forward(zero, zero, ops.zeros_like(tokens.weights), gradients)
        return self._over_chunks(tokens.count, tokens.weights.shape[0], body, start)

    def backward(
        self, tokens: Tokens, tables: Sequence[Table], log_partition: Any, loss_gradient: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Gradients of the features and of the values of each table (None where frozen).

        The logits of each block are made again, and normalised by `log_partition`.
        """
        tokens = tokens._replace(weights=tokens.weights * loss_gradient)
        trains = [table.trainable for table in tables]

        def body(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            of_features, of_tables = carry
            of_features, of_blocks = self._backward(
                index, of_features, tokens, tables, log_partition
            )
            start, _ = self._block_start(index)
            return of_features, tuple(
                _add_block(g, new, start, table.axis)
                for g, new, table in zip(of_tables, of_blocks, _where(trains, tables), strict=True)
            )

        of_features = tuple(ops.zeros_like(f, dtype="float32") for f in tokens.features)
        of_tables = tuple(ops.zeros(t.arrays[0].shape, "float32") for t in _where(trains, tables))
        of_features, of_tables = ops.fori_loop(0, self._block_count, body, (of_features, of_tables))
        trained = iter(of_tables)
        return (
            tuple(ops.cast(g, f.dtype) for g, f in zip(of_features, tokens.features, strict=True)),
            tuple(
                ops.cast(next(trained), t.arrays[0].dtype) if t.trainable else None for t in tables
            ),
        )

    def _backward(
        self,
        index: Any,
        of_features: tuple[Any, ...],
        tokens: Tokens,
        tables: Sequence[Table],
        log_partition: Any,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Add one block's part to the gradients of the features; gradients of its rows."""
        trains = [table.trainable for table in tables]
        start, fresh = self._block_start(index)
        blocks = [t.block(start, self._block_size) for t in tables]
        columns = start + ops.arange(self._block_size, dtype="int32")

        def body(row: Any, size: int, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            of_features, of_blocks = carry
            features = [_rows(f, row, size) for f in tokens.features]
            labels, partition, weights = (
                _rows(v, row, size) for v in (tokens.labels, log_partition, tokens.weights)
            )
            error = self._error(features, blocks, columns, labels, partition, weights)
            error = error if fresh is None else ops.where(fresh(columns), error, 0.0)
            error = ops.cast(error, self.objective.dtype)
            return (
                tuple(
                    ops.slice_update(
                        g, (row, 0), _rows(g, row, size) + self.product(error, b, 1, 0)
                    )
                    for g, b in zip(of_features, blocks, strict=True)
                ),
                tuple(
                    g + self.product(error, f, 0, 0)
                    for g, f in zip(of_blocks, _where(trains, features), strict=True)
                ),
            )

        of_blocks = tuple(ops.zeros(b.shape, "float32") for b in _where(trains, blocks))
        return self._over_chunks(
            tokens.count, tokens.weights.shape[0], body, (of_features, of_blocks)
        )

    def _forward(
        self, features: list[Any], labels: Any, tables: Sequence[Table], emits: bool
    ) -> tuple[Any, ...]:
        """Loss, rightness and log-partition of each token, and gradients of the features."""
        rows = [ops.cast(t.rows(labels), "float32") for t in tables]
        label_logit = sum(
            ops.sum(ops.cast(f, "float32") * r, 1) for f, r in zip(features, rows, strict=True)
        )
        label_logit, label_slope = self._cap(label_logit)
        zeros = ops.zeros_like(label_logit)
        grads = tuple(ops.zeros(f.shape, "float32") for f in features) if emits else ()
        width = 1 if self.objective.soft_cap is None else labels.shape[0]
        uniform = tuple(ops.zeros((width, *g.shape[1:]), "float32") for g in grads)
        running = ops.fori_loop(
            0,
            self._block_count,
            lambda index, running: self._absorb(running, index, features, labels, tables),
            Running(label_logit, zeros + float("-inf"), zeros, zeros, grads, uniform),
        )
        return self._finish(running, label_logit, label_slope, rows)

    def _absorb(
        self,
        running: Running,
        index: Any,
        features: list[Any],
        labels: Any,
        tables: Sequence[Table],
    ) -> Running:
        maximum, other, total, logit_sum, grads, uniform = running
        start, fresh = self._block_start(index)
        blocks = [t.block(start, self._block_size) for t in tables]
        logits, slope = self._cap(self._logits(features, blocks))
        columns = (start + ops.arange(self._block_size, dtype="int32"))[None, :]
        # An overlapping last block brings entries that were there before: they count once.
        is_new = ops.ones(columns.shape, "bool") if fresh is None else fresh(columns)
        if self.objective.label_smoothing:
            spread = ops.cast(is_new, "float32")
            logit_sum = logit_sum + ops.sum(spread * logits, 1)
            spread = spread if slope is None else spread * slope
            uniform = tuple(
                u + self.product(ops.cast(spread, b.dtype), b, 1, 0)
                for u, b in zip(uniform, blocks, strict=False)
            )
        # The label is left out and added at the end: 1 - p loses no digits where p is near 1.
        is_other = ops.logical_and(is_new, ops.not_equal(columns, labels[:, None]))
        logits = ops.where(is_other, logits, float("-inf"))
        block_maximum = ops.max(logits, 1)
        higher = ops.maximum(maximum, block_maximum)
        shrink = ops.exp(maximum - higher)
        powers = ops.exp(logits - higher[:, None])
        total = total * shrink + ops.sum(powers, 1)
        powers = powers if slope is None else powers * slope
        grads = tuple(
            g * shrink[:, None] + self.product(ops.cast(powers, b.dtype), b, 1, 0)
            for g, b in zip(grads, blocks, strict=False)
        )
        other = ops.maximum(other, block_maximum)
        return Running(higher, other, total, logit_sum, grads, uniform)

    def _finish(
        self, running: Running, label_logit: Any, label_slope: Any, rows: list[Any]
    ) -> tuple[Any, ...]:
        smoothing, z_loss = self.objective.label_smoothing, self.objective.z_loss
        maximum, other, total, logit_sum, grads, uniform = running
        label_power = ops.exp(label_logit - maximum)
        partition = total + label_power
        log_partition = maximum + ops.log(partition)
        share = smoothing / self.vocabulary_size
        loss = log_partition - (1 - smoothing) * label_logit - share * logit_sum
        loss = loss + z_loss * log_partition**2
        pull = (1 + 2 * z_loss * log_partition) / partition
        of_label = (2 * z_loss * log_partition * label_power - total) / partition + smoothing
        of_label = of_label if label_slope is None else of_label * label_slope
        grads = tuple(
            pull[:, None] * g + of_label[:, None] * r - share * u
            for g, u, r in zip(grads, uniform, rows, strict=False)
        )
        return loss, label_logit > other, log_partition, grads

    def _error(
        self,
        features: list[Any],
        blocks: list[Any],
        columns: Any,
        labels: Any,
        log_partition: Any,
        weights: Any,
    ) -> Any:
        smoothing, z_loss = self.objective.label_smoothing, self.objective.z_loss
        logits, slope = self._cap(self._logits(features, blocks))
        error = ops.exp(logits - log_partition[:, None])
        if z_loss:
            error = error * (1 + 2 * z_loss * log_partition)[:, None]
        is_label = ops.equal(columns[None, :], labels[:, None])
        share = smoothing / self.vocabulary_size
        error = error - ops.where(is_label, 1 - smoothing + share, share)
        error = error if slope is None else error * slope
        return error * weights[:, None]

    def _logits(self, features: list[Any], blocks: list[Any]) -> Any:
        parts = [self.product(f, b, 1, 1) for f, b in zip(features, blocks, strict=True)]
        return sum(parts[1:], parts[0])

    def _cap(self, logits: Any) -> tuple[Any, Any]:
        cap = self.objective.soft_cap
        if cap is None:
            return logits, None
        bounded = ops.tanh(logits / cap)
        return bounded * cap, 1 - bounded * bounded

    @property
    def _block_count(self) -> int:
        return -(-self.vocabulary_size // self.blocking.block)

    @property
    def _block_size(self) -> int:
        return min(self.blocking.block, self.vocabulary_size)

    def _block_start(self, index: Any) -> tuple[Any, Callable[[Any], Any] | None]:
        # The last block starts early enough to be whole; `fresh` tells what is new in it.
        first = index * self._block_size
        if self.vocabulary_size % self._block_size == 0:
            return first, None
        start = ops.minimum(first, self.vocabulary_size - self._block_size)
        return start, lambda columns: ops.greater_equal(columns, first)

    def _over_chunks(
        self, count: Any, length: int | None, body: Callable[..., Any], carry: Any
    ) -> Any:
        chunk, remainder = self.blocking.chunk, self.blocking.remainder
        # In multiples of `remainder`.
        parts, largest = (count + remainder - 1) // remainder, chunk // remainder
        whole = 0
        if length is None or length >= chunk:
            whole = parts // largest
            carry = ops.fori_loop(0, whole, lambda i, c: body(i * chunk, chunk, c), carry)
        else:
            largest = length // remainder + 1
        # Products of few tokens are slow: the rest is taken at once, in as many as it needs.
        sizes = [remainder * n for n in range(1, largest)]
        rest = [lambda c, size=size: body(whole * chunk, size, c) for size in sizes]
        return ops.switch(parts - whole * (chunk // remainder), [lambda c: c, *rest], carry)


def _where(trains: list[bool], values: Sequence[Any]) -> list[Any]:
    return [value for value, trained in zip(values, trains, strict=True) if trained]


def _rows(values: Any, start: Any, size: int) -> Any:
    shape = (size, *values.shape[1:])
    return ops.slice(values, [start] + [0] * (len(shape) - 1), shape)


def _add_block(total: Any, new: Any, start: Any, axis: int) -> Any:
    new = new if axis == 0 else ops.transpose(new)
    starts = [start, 0] if axis == 0 else [0, start]
    return ops.slice_update(total, starts, ops.slice(total, starts, new.shape) + new)
