"""The next-token loss, made from hidden states without ever holding the logits.

The vocabulary is gone through in blocks. A running maximum and sum (the online softmax of
https://arxiv.org/abs/1805.02867) give the loss, and with a frozen head the same pass accumulates
`Σ exp(logit_v)·W_v`, which is dLoss/dhidden once it is normalised: two products in all, in the
forward pass. Where the head trains, the backward pass makes the logits of each block again. Only
supervised tokens take part.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, NamedTuple

import keras
from keras import ops

from kerora.training.objective_head import Head, find_head

_backend = importlib.import_module(f"kerora.training.objective_{keras.backend.backend()}")

__all__ = ["Head", "NextTokenSums", "find_head", "next_token_loss"]


class NextTokenSums(NamedTuple):
    """Sums over the tokens of a batch, float32 scalars.

    Attributes:
        loss_sum: Σ weight · loss. The only one that has a gradient.
        weight_sum: Σ weight.
        correct_sum: Σ weight · (the label has the largest logit, alone).
    """

    loss_sum: Any
    weight_sum: Any
    correct_sum: Any


@dataclasses.dataclass(frozen=True)
class TokenObjective:
    """What is added up for each token, from its logits.

    Attributes:
        label_smoothing: Share ε of the target that is spread evenly over the vocabulary.
        z_loss: Weight ζ of `logsumexp²`.
        soft_cap: Bound of the logits, or None.
        dtype: Type in which the products are taken.
    """

    label_smoothing: float
    z_loss: float
    soft_cap: float | None
    dtype: str


def next_token_loss(
    hidden: Any,
    labels: Any,
    weights: Any,
    head: Head,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    gradient: bool = True,
) -> NextTokenSums:
    """Cross-entropy of next tokens, from hidden states.

    The loss of a token with logits c and label y is
    `(1-ε)·(lse - c_y) + ε·(lse - mean(c)) + ζ·lse²`, lse being `logsumexp(c)`: label smoothing ε
    over the whole vocabulary, and the z-loss ζ of PaLM (https://arxiv.org/abs/2204.02311).

    Args:
        hidden: Hidden states (B, S, D), any float type.
        labels: Label of each position, int32 (B, S).
        weights: Weight of each position, float32 (B, S). A position of weight 0 costs nothing.
        head: What turns hidden states into logits, from `find_head`.
        label_smoothing: ε, in [0, 1).
        z_loss: ζ, at least 0.
        gradient: Whether the loss will be differentiated; False halves the work.

    Returns:
        `NextTokenSums`; the mean loss is `loss_sum / weight_sum`. Gradients reach `hidden` and
        whatever is trainable in the head.

    Example:
    ```python
    head = find_head(model)
    sums = next_token_loss(model.backbone(x), y, sample_weight, head)
    loss = sums.loss_sum / sums.weight_sum
    ```
    """
    width = hidden.shape[-1]
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    weights = ops.reshape(ops.cast(weights, "float32"), (-1,))
    features, tables = head.factors(ops.reshape(hidden, (-1, width)))
    objective = TokenObjective(label_smoothing, z_loss, head.soft_cap, head.dtype)
    loss_sum, correct_sum = _backend.token_sums(
        features, tables, labels, weights, head.vocabulary_size, objective, gradient
    )
    return NextTokenSums(loss_sum, ops.sum(weights), correct_sum)
