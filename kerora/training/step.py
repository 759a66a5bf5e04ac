"""What one training or evaluation step computes: kerora's loss on hidden states.

Within a step the model hands on hidden states in place of logits, `next_token_loss` makes the loss
from them, and the token accuracy comes out of the same products. A loss or metric that needs the
logits themselves takes Keras' own way, packed rows included.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import keras
from keras import ops

from kerora.model_mixin import ModelMixin
from kerora.training.attention import training_attention
from kerora.training.losses import TokenLoss
from kerora.training.objective import Head, find_head, next_token_loss
from kerora.training.positions import with_positions
from kerora.training.replicas import over_replicas
from kerora.training.step_metrics import LatestValue, LossMean

Reduction = Literal["tokens", "positions", "sum"]
_REDUCTIONS: dict[str, Reduction] = {
    "mean_with_sample_weight": "tokens",
    "sum_over_batch_size": "positions",
    "mean": "positions",
    "sum": "sum",
}
# Of each thread: TensorFlow traces the replicas of a step in threads that take turns.
_stepping: ContextVar[StepModel | None] = ContextVar("kerora_stepping", default=None)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A next-token loss that can be had from hidden states.

    Attributes:
        reduction: Divide the summed loss by the weight of the supervised tokens ("tokens"), by
            the number of positions ("positions", Keras' "sum_over_batch_size"), or not at all.
        label_smoothing: Share of the target spread over the vocabulary.
        z_loss: Weight of the squared log-partition.
    """

    reduction: Reduction = "tokens"
    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What `compile` was given, as the step needs it.

    A plain object, so that Keras does not track the metrics a second time.

    Attributes:
        objective: The loss on hidden states; None where the logits themselves are asked for.
        accuracies: The token accuracies that the objective keeps up to date.
    """

    objective: Objective | None
    accuracies: tuple[keras.metrics.SparseCategoricalAccuracy, ...]

    @classmethod
    def read(cls, loss: Any, metrics: Sequence[Any]) -> CompiledStep:
        """Of the arguments of `compile`."""
        # A subclass may compute something else.
        of_tokens = [type(m) is keras.metrics.SparseCategoricalAccuracy for m in metrics]
        objective = _read_objective(loss) if all(of_tokens) else None
        return cls(objective, tuple(metrics) if objective else ())


def _reduction(loss: Any) -> Reduction | None:
    return _REDUCTIONS.get(getattr(loss, "reduction", None) or "none")


def _read_objective(loss: Any) -> Objective | None:
    reduction = _reduction(loss)
    if reduction is None:
        return None
    if type(loss) is TokenLoss:
        return Objective(reduction, loss.label_smoothing, loss.z_loss)
    if type(loss) is keras.losses.SparseCategoricalCrossentropy:
        config = loss.get_config()
        if config["from_logits"] and config["ignore_class"] is None:
            return Objective(reduction)
    return None


class StepModel(ModelMixin):
    """Mixin of a causal language model whose steps run on hidden states and packed rows.

    Expects `self.backbone` and `self.preprocessor`; `compile` sets `_compiled`.
    """

    train_function: Any
    test_function: Any
    predict_function: Any
    _loss_tracker: LossMean
    _compiled: CompiledStep

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # What a model is given is checked before its `call`, which JAX's steps go to at once.
        return super().__call__(with_positions(self.backbone, inputs), *args, **kwargs)

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = with_positions(self.backbone, inputs)
        if not self._in_step:
            return super().call(inputs, *args, **kwargs)
        with training_attention(self.backbone, inputs["padding_mask"]):
            if self._step_head() is not None:
                return self.backbone(inputs, training=kwargs.get("training"))
            return super().call(inputs, *args, **kwargs)

    def _step_head(self) -> Head | None:
        """The head of a step on hidden states; None for one on logits, and outside of steps."""
        wanted = self._in_step and self._compiled.objective is not None
        return find_head(self) if wanted else None

    @property
    def _in_step(self) -> bool:
        return _stepping.get() is self

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        token = _stepping.set(self)
        try:
            with _in_replica():
                yield
        finally:
            _stepping.reset(token)

    def _symbolic_build(self, *args: Any, **kwargs: Any) -> Any:
        # A preprocessor is called ahead of the model and so never built in Keras' eyes, which then
        # traces the model at every `fit`.
        if self.preprocessor is not None:
            _build(self.preprocessor)  # which makes layers
            for layer in self.preprocessor._flatten_layers(include_self=False):
                _build(layer)
        if self._compiled.objective is not None:
            self._build_compiled()
        return super()._symbolic_build(*args, **kwargs)

    def _build_compiled(self) -> None:
        """Build Keras' containers of loss and metrics, of which a step on hidden states uses none.

        Keras builds them at their first use, and traces the model at every `fit` while they are
        not.
        """
        labels = keras.KerasTensor((None, None), "int32")
        for container in (self._compile_metrics, self._compile_loss):
            if container is not None and not container.built:
                container.build(labels, labels)

    def make_train_function(self, force: bool = False) -> None:
        made_before = self.train_function
        super().make_train_function(force)
        if keras.backend.backend() == "jax" and self.train_function is not made_before:
            from kerora.training.replicas_jax import with_replicas
            from kerora.training.step_jax import guarded

            self.train_function = guarded(self, with_replicas(self, self.train_function))

    def make_test_function(self, force: bool = False) -> None:
        made_before = self.test_function
        super().make_test_function(force)
        if keras.backend.backend() == "jax" and self.test_function is not made_before:
            from kerora.training.replicas_jax import on_first_device
            from kerora.training.step_jax import guarded

            self.test_function = guarded(self, on_first_device(self.test_function))

    def make_predict_function(self, force: bool = False) -> None:
        made_before = self.predict_function
        super().make_predict_function(force)
        if keras.backend.backend() == "jax" and self.predict_function is not made_before:
            from kerora.training.step_jax import guarded

            self.predict_function = guarded(self, self.predict_function)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._step():
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._step():
            return super().test_step(*args, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        head, objective = self._step_head(), self._compiled.objective
        if head is None or objective is None:
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            by_tokens = _reduction(self.loss) == "tokens" and sample_weight is not None
            weight_sum = ops.sum(_token_weights(sample_weight, y)) if by_tokens else None
            self._report_step(x, loss, weight_sum)
            return loss
        weights = _token_weights(sample_weight, y)
        sums = next_token_loss(
            y_pred,
            y,
            weights,
            head,
            label_smoothing=objective.label_smoothing,
            z_loss=objective.z_loss,
            gradient=training,
        )
        weight_sum = over_replicas(ops.stop_gradient(sums.weight_sum))
        correct_sum = over_replicas(ops.stop_gradient(sums.correct_sum))
        for metric in self._compiled.accuracies:
            accuracy = correct_sum / ops.maximum(weight_sum, 1e-9)
            keras.metrics.Mean.update_state(metric, accuracy, weight_sum)
        loss = sums.loss_sum / _divisor(objective.reduction, y, weight_sum)
        for extra in self.losses:
            loss = loss + ops.sum(ops.cast(extra, "float32")) / over_replicas(1.0)
        self._report_step(x, loss, weight_sum if objective.reduction == "tokens" else None)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if self._step_head() is None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        self._build_compiled()
        return self.get_metrics_result()

    def report_steps(self) -> None:
        """Add to the logs of every step its own loss and number of real tokens.

        Keras' own `loss` is the mean since the epoch began.
        """
        if not hasattr(self, "step_report"):
            self.step_report = [LatestValue("step_loss"), LatestValue("step_tokens")]
            self.train_function = None
            self.test_function = None

    def _report_step(self, x: Any, loss: Any, token_weight: Any) -> None:
        """Keep Keras' metrics; `token_weight` is None where the loss is no mean over tokens."""
        if not self._in_step:
            return
        loss = over_replicas(ops.stop_gradient(loss))
        rows = ops.cast(ops.shape(x["padding_mask"])[0], "float32")
        self._loss_tracker.add(loss, over_replicas(rows) if token_weight is None else token_weight)
        if hasattr(self, "step_report"):
            of_loss, of_tokens = self.step_report
            of_loss.update_state(loss)
            real = ops.cast(ops.greater(x["padding_mask"], 0), "float32")
            of_tokens.update_state(over_replicas(ops.sum(real)))


def _in_replica() -> contextlib.AbstractContextManager[None]:
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    from kerora.training.replicas_tensorflow import in_replica

    return in_replica()


def _build(layer: keras.layers.Layer) -> None:
    if not layer.built:
        layer.build(None)


def _token_weights(sample_weight: Any, labels: Any) -> Any:
    """A weight for each label, float32; Keras also takes one for each row."""
    ones = ops.ones(ops.shape(labels))
    if sample_weight is None:
        return ones
    # Not by the rank: TensorFlow's pipelines may hand over weights of an unknown one.
    return ops.reshape(ops.cast(sample_weight, "float32"), (ops.shape(labels)[0], -1)) * ones


def _divisor(reduction: Reduction, labels: Any, weight_sum: Any) -> Any:
    if reduction == "tokens":
        return ops.maximum(weight_sum, 1e-9)
    size = ops.cast(ops.size(labels), "float32")
    return over_replicas(size) if reduction == "positions" else 1.0
