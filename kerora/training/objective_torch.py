"""PyTorch's form of the objective: one `autograd.Function`, buffers reused, work in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from kerora.training.objective_head import Table

if TYPE_CHECKING:
    from kerora.training.objective import TokenObjective

# Tokens and entries of the vocabulary per block of logits. On a CPU the block stays in the cache.
CPU_BLOCK = (1024, 4096)
GPU_BLOCK = (4096, 8192)
_FLOAT32_SUMS = ("cuda", "xpu")  # Devices whose products of half precision can be float32.


def token_sums(
    features: tuple[torch.Tensor, ...],
    tables: tuple[Table, ...],
    labels: torch.Tensor,
    weights: torch.Tensor,
    vocabulary_size: int,
    objective: TokenObjective,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of the loss and of right predictions, see `objective.next_token_loss`."""
    supervised = torch.nonzero(weights, as_tuple=True)[0]
    features = tuple(f.index_select(0, supervised) for f in features)
    sweep = _Sweep(
        tables, labels[supervised].long(), weights[supervised], vocabulary_size, objective
    )
    arrays = [array for table in tables for array in table.arrays]
    # Within the function autograd is off, and what it says of its inputs ignores `no_grad`.
    gradient = gradient and torch.is_grad_enabled()
    return _TokenSums.apply(sweep, gradient, len(features), *features, *arrays)


class _TokenSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sweep: _Sweep, gradient: bool, count: int, *tensors: torch.Tensor) -> Any:
        features = tensors[:count]
        needs = ctx.needs_input_grad[3:] if gradient else ()
        ctx.sweep, ctx.trainable = sweep, any(needs[count:])
        emits = any(needs) and not ctx.trainable
        loss_sum, correct_sum, log_partition, gradients = sweep.forward(features, emits)
        ctx.save_for_backward(*(features if ctx.trainable else gradients), log_partition)
        ctx.arrays = len(tensors) - count
        ctx.mark_non_differentiable(correct_sum)
        return loss_sum, correct_sum

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor, _: Any) -> Any:
        *saved, log_partition = ctx.saved_tensors
        if not ctx.trainable:
            return None, None, None, *(g * loss_gradient for g in saved), *([None] * ctx.arrays)
        of_features, of_tables = ctx.sweep.backward(saved, log_partition, loss_gradient)
        return None, None, None, *of_features, *of_tables


class _Sweep:
    """The passes over the vocabulary, on supervised tokens alone."""

    def __init__(
        self,
        tables: tuple[Table, ...],
        labels: torch.Tensor,
        weights: torch.Tensor,
        vocabulary_size: int,
        objective: TokenObjective,
    ) -> None:
        self.tables = [t.with_arrays(tuple(a.detach() for a in t.arrays)) for t in tables]
        self.labels, self.weights = labels, weights
        self.vocabulary_size, self.objective = vocabulary_size, objective
        self.tokens, self.block = CPU_BLOCK if labels.device.type == "cpu" else GPU_BLOCK
        self.dtype = getattr(torch, objective.dtype)
        if labels.device.type not in _FLOAT32_SUMS:
            # A half-precision product returns half precision there, and on a CPU is no faster.
            self.dtype = torch.float32

    def chunks(self) -> Iterator[slice]:
        """Even slices of the tokens."""
        count = len(self.labels)
        number = max(1, -(-count // self.tokens))
        size = max(1, -(-count // number))
        return (slice(i, min(i + size, count)) for i in range(0, count, size))

    def blocks(self) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """Starts and rows of the blocks of each table."""
        for start in range(0, self.vocabulary_size, self.block):
            size = min(self.block, self.vocabulary_size - start)
            yield start, [t.block(start, size).to(self.dtype) for t in self.tables]

    def forward(
        self, features: tuple[torch.Tensor, ...], emits: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Sums, log-partitions, and the gradients of the features if asked for."""
        sums = torch.zeros(2, device=self.labels.device)
        log_partition = torch.empty(len(self.labels), device=self.labels.device)
        gradients = [torch.empty_like(f) for f in features] if emits else []
        for chunk in self.chunks():
            narrow = [f[chunk].to(self.dtype) for f in features]
            loss, correct, log_partition[chunk], grads = self._forward(narrow, chunk, emits)
            weights = self.weights[chunk]
            sums += torch.stack([weights @ loss, weights @ correct.float()])
            for gradient, grad in zip(gradients, grads, strict=emits):
                gradient[chunk] = grad.mul_(weights[:, None]).to(gradient.dtype)
        return sums[0].clone(), sums[1].clone(), log_partition, gradients

    def _forward(self, features: list[torch.Tensor], chunk: slice, emits: bool) -> Any:
        smoothing, labels = self.objective.label_smoothing, self.labels[chunk]
        rows = [t.rows(labels).float() for t in self.tables]
        label_logit = torch.stack(
            [(f.float() * r).sum(1) for f, r in zip(features, rows, strict=True)]
        ).sum(0)
        label_logit, label_slope = self._cap(label_logit)
        maximum, other = label_logit.clone(), torch.full_like(label_logit, -torch.inf)
        total, logit_sum = torch.zeros_like(maximum), torch.zeros_like(maximum)
        grads = [torch.zeros(f.shape, device=f.device) for f in features] if emits else []
        uniform = [torch.zeros_like(g) for g in grads]
        buffer: torch.Tensor | None = None
        for start, blocks in self.blocks():
            buffer = self._logits(features, blocks, buffer)
            logits, slope = self._cap(buffer)
            if smoothing:
                logit_sum += logits.sum(1)
                for u, block in zip(uniform, blocks, strict=emits):
                    u += block.float().sum(0) if slope is None else _product(slope, block)
            # The label is left out and added at the end: 1 - p loses no digits where p is near 1.
            _set_at_labels(logits, labels - start, -torch.inf)
            block_maximum = logits.amax(1)
            other = torch.maximum(other, block_maximum)
            higher = torch.maximum(maximum, block_maximum)
            shrink, maximum = (maximum - higher).exp_(), higher
            powers = logits.sub_(maximum[:, None]).exp_()
            total.mul_(shrink).add_(powers.sum(1))
            if emits and slope is not None:
                powers *= slope
            for grad, block in zip(grads, blocks, strict=emits):
                _add_product(grad.mul_(shrink[:, None]), powers, block)
        label_power = (label_logit - maximum).exp_()
        partition = total + label_power
        log_partition = maximum + partition.log()
        pull, of_label = self._weights_of_rows(label_power, total, partition, log_partition)
        if label_slope is not None:
            of_label *= label_slope
        share = smoothing / self.vocabulary_size
        for grad, row, u in zip(grads, rows, uniform, strict=emits):
            grad.mul_(pull[:, None]).addcmul_(of_label[:, None], row).sub_(u, alpha=share)
        loss = log_partition - (1 - smoothing) * label_logit - share * logit_sum
        loss += self.objective.z_loss * log_partition**2
        return loss, label_logit > other, log_partition, grads

    def _weights_of_rows(
        self,
        label_power: torch.Tensor,
        total: torch.Tensor,
        partition: torch.Tensor,
        log_partition: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of `Σ exp(logit)·row` over the other rows, and of the label's own row."""
        drift = 2 * self.objective.z_loss * log_partition
        of_label = (drift * label_power - total) / partition + self.objective.label_smoothing
        return (1 + drift) / partition, of_label

    def backward(
        self, features: list[torch.Tensor], log_partition: torch.Tensor, loss_gradient: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Gradients of features and of the arrays of the tables, with the logits made again."""
        of_features = [torch.zeros(f.shape, device=f.device) for f in features]
        of_tables = [
            torch.zeros(t.arrays[0].shape, device=log_partition.device) if t.trainable else None
            for t in self.tables
        ]
        weights = self.weights * loss_gradient
        buffer: torch.Tensor | None = None
        for start, blocks in self.blocks():
            rows = slice(start, start + len(blocks[0]))
            for chunk in self.chunks():
                narrow = [f[chunk].to(self.dtype) for f in features]
                buffer = self._logits(narrow, blocks, buffer)
                error = self._error(buffer, start, chunk, log_partition[chunk], weights[chunk])
                for gradient, block in zip(of_features, blocks, strict=True):
                    _add_product(gradient[chunk], error, block)
                for table, of_table, f in zip(self.tables, of_tables, narrow, strict=True):
                    if of_table is not None and table.axis == 0:
                        _add_product(of_table[rows], error.T, f)
                    elif of_table is not None:
                        _add_product(of_table[:, rows], f.T, error)
        of_arrays: list[torch.Tensor | None] = []
        for table, of_table in zip(self.tables, of_tables, strict=True):
            of_arrays += [None] * len(table.arrays)
            if of_table is not None:
                of_arrays[-1] = of_table.to(table.arrays[0].dtype)
        return [g.to(f.dtype) for g, f in zip(of_features, features, strict=True)], of_arrays

    def _error(
        self,
        logits: torch.Tensor,
        start: int,
        chunk: slice,
        log_partition: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        smoothing, z_loss = self.objective.label_smoothing, self.objective.z_loss
        logits, slope = self._cap(logits)
        error = logits.sub_(log_partition[:, None]).exp_()
        if z_loss:
            error *= (1 + 2 * z_loss * log_partition)[:, None]
        if smoothing:
            error -= smoothing / self.vocabulary_size
        _add_at_labels(error, self.labels[chunk] - start, smoothing - 1)
        if slope is not None:
            error *= slope
        return error.mul_(weights[:, None])

    def _logits(
        self, features: list[torch.Tensor], blocks: list[torch.Tensor], buffer: torch.Tensor | None
    ) -> torch.Tensor:
        shape = (len(features[0]), len(blocks[0]))
        if buffer is None or buffer.shape != shape:
            buffer = torch.empty(shape, device=features[0].device)
        if self.dtype == torch.float32:
            torch.mm(features[0], blocks[0].T, out=buffer)
        else:
            buffer = _product(features[0], blocks[0].T)
        for f, block in zip(features[1:], blocks[1:], strict=True):
            _add_product(buffer, f, block.T)
        return buffer

    def _cap(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        cap = self.objective.soft_cap
        if cap is None:
            return logits, None
        bounded = logits.div_(cap).tanh_()
        slope = 1 - bounded.square()
        return bounded.mul_(cap), slope


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if b.dtype == torch.float32:
        return torch.mm(a, b)
    return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if a.dtype == b.dtype == torch.float32:
        total.addmm_(a, b)
        return
    narrow = b.dtype if a.dtype == torch.float32 else a.dtype
    total += torch.mm(a.to(narrow), b.to(narrow), out_dtype=torch.float32)


def _set_at_labels(logits: torch.Tensor, columns: torch.Tensor, value: float) -> None:
    inside = (columns >= 0) & (columns < logits.shape[1])
    index = columns.clamp(0, logits.shape[1] - 1)[:, None]
    kept = logits.gather(1, index)
    logits.scatter_(1, index, torch.where(inside[:, None], value, kept))


def _add_at_labels(error: torch.Tensor, columns: torch.Tensor, value: float) -> None:
    inside = (columns >= 0) & (columns < error.shape[1])
    index = columns.clamp(0, error.shape[1] - 1)[:, None]
    error.scatter_add_(1, index, inside[:, None] * value)
