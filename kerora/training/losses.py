"""The next-token loss as `compile` takes it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def check_text_loss(loss: Any) -> None:
    """Refuses a loss that cannot be had from token ids and the logits of a vocabulary.

    Args:
        loss: What `compile` was given: a name, a function or a `keras.losses.Loss`.

    Raises:
        ValueError: It wants predictions of the labels' shape, or probabilities in place of logits.

    Example:
    ```python
    check_text_loss("mse")  # ValueError: The loss 'mse' cannot be computed on text ...
    ```
    """
    received = type(loss).__name__ if isinstance(loss, keras.losses.Loss) else repr(loss)
    possible = (
        "Possible are kerora.losses.TokenLoss (the default of `compile`), "
        "keras.losses.SparseCategoricalCrossentropy(from_logits=True), and a function of labels "
        f"(batch, length) and logits (batch, length, vocabulary). Received: loss={received}"
    )
    function = keras.losses.get(loss) if isinstance(loss, str) else loss
    if not _is_keras_own(function):
        return
    is_sparse = isinstance(function, keras.losses.SparseCategoricalCrossentropy)
    if is_sparse and function.get_config()["from_logits"]:
        return
    if is_sparse or function is keras.losses.sparse_categorical_crossentropy:
        raise ValueError(
            f"This loss takes probabilities, and the model's outputs are logits. {possible}"
        )
    try:
        # No two sizes alike, so that no shape fits by chance.
        function(ops.zeros((2, 3), "int32"), ops.zeros((2, 3, 5)))
    except Exception as error:  # each loss fails in a way of its own
        raise ValueError(
            f"This loss cannot be computed from token ids as labels. {possible}"
        ) from error


def _is_keras_own(loss: Any) -> bool:
    """Whether Keras defines it: what users write is theirs to judge."""
    home = loss.__module__ if hasattr(loss, "__name__") else type(loss).__module__
    return home.split(".")[0] == "keras"


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
