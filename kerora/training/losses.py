"""The next-token loss as `compile` takes it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerora")
class TokenLoss(keras.losses.Loss):
    """Cross-entropy of the next token, with label smoothing and z-loss.

    The loss of a token with logits c and label y is
    `(1-ε)·(lse - c_y) + ε·(lse - mean(c)) + ζ·lse²`, lse being `logsumexp(c)`. A model of kerora
    makes it from hidden states, without the logits; on any other model it is an ordinary loss on
    logits.

    Args:
        label_smoothing: Share ε of the target that is spread evenly over the vocabulary, in
            [0, 1). Default 0.
        z_loss: Weight ζ of the squared log-partition, which keeps logits from drifting (PaLM,
            https://arxiv.org/abs/2204.02311, uses 1e-4). At least 0. Default 0.
        reduction: As for any Keras loss. Default `"mean_with_sample_weight"`: the weighted mean
            over the tokens that have a weight.
        name: Name of the loss.

    Raises:
        ValueError: For a `label_smoothing` or `z_loss` outside the above.

    Example:
    ```python
    model.compile(loss=kerora.losses.TokenLoss(label_smoothing=0.1), optimizer="adam")
    ```
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        name: str = "token_loss",
    ) -> None:
        # Labels pass through the loss's type, and token ids need its 24 bits.
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must lie in [0, 1). Received: {label_smoothing!r}")
        if not z_loss >= 0:
            raise ValueError(f"`z_loss` must be at least 0. Received: {z_loss!r}")
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses (B, S) of labels (B, S) and logits (B, S, V)."""
        labels = ops.cast(y_true, "int32")
        log_partition = ops.logsumexp(y_pred, axis=-1)
        label_logit = ops.squeeze(ops.take_along_axis(y_pred, labels[..., None], axis=-1), -1)
        loss = log_partition - (1 - self.label_smoothing) * label_logit
        if self.label_smoothing:
            loss = loss - self.label_smoothing * ops.mean(y_pred, axis=-1)
        return loss + self.z_loss * ops.square(log_partition)

    def get_config(self) -> dict[str, Any]:
        """Arguments to build the same loss from."""
        own = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        return {**super().get_config(), **own}
