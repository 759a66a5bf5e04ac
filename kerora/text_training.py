"""Training and evaluation of a causal language model on text as people have it."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import keras
import numpy as np

from kerora.adapters import adapter_configs
from kerora.data import Batches, check_token_data, is_token_data
from kerora.default_learning_rates import FULL_LEARNING_RATE, default_learning_rate
from kerora.keyword_hints import hints
from kerora.training.fit_data import (
    DataOptions,
    text_batches,
    warn_of_lost_rows,
    warn_of_unchosen_chat_template,
)
from kerora.training.losses import TokenLoss, check_text_loss
from kerora.training.step import CompiledStep, StepModel
from kerora.training.step_metrics import weigh_loss_by_tokens
from kerora.user_warning import warn_user

# Rows of one data set are mostly alike, and the sources of a mixture alternate.
_LOOKED_AT_ROWS = 16


class TextTraining(StepModel):
    """Mixin of a KerasHub causal language model: `compile`, `fit` and `evaluate`."""

    _default_rate: float | None = None  # The learning rate in use, where kerora chose it.

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keras' `compile`, with defaults for fine-tuning.

        Args:
            optimizer: Default: Adam, gradients clipped to a global norm of 1, at a learning rate
                of 5e-4 for adapters and 2e-5 for full fine-tuning; `fit` takes more for runs of
                less than 128 steps, twice that in 16. Of a model that computes in float16 it is
                wrapped in Keras' `LossScaleOptimizer` unless `auto_scale_loss=False`.
            loss: Default: the mean cross-entropy over supervised tokens (`kerora.TokenLoss`).
            weighted_metrics: Default: token accuracy.
            sampler: As in KerasHub. Default: the one that the model has, or KerasHub's own.
            **kwargs: As in `keras.Model.compile`.
        """
        self._default_rate = None
        if optimizer == "auto":
            rate = _number_that_nobody_types(FULL_LEARNING_RATE)
            optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0)
            self._default_rate = _learning_rate(optimizer)
        if self.compute_dtype == "float16" and kwargs.get("auto_scale_loss", True):
            optimizer = _with_scaled_loss(optimizer)
        if loss == "auto":
            loss = TokenLoss()
        if weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        metrics = _as_objects(kwargs.pop("metrics", None))
        weighted_metrics = _as_objects(weighted_metrics)
        if sampler is None:
            sampler = getattr(self, "sampler", None)
        more = {} if sampler is None else {"sampler": sampler}
        super().compile(
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **more,
            **kwargs,
        )
        self._read_compiled(loss, metrics, weighted_metrics)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        return {**config, "default_rate": self._default_rate} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        arguments = keras.saving.deserialize_keras_object(config)
        default_rate = arguments.pop("default_rate")
        self.compile(**arguments)
        self._default_rate = default_rate
        self.optimizer.build(self.trainable_variables)

    def _read_compiled(self, loss: Any, metrics: Any, weighted_metrics: Any) -> None:
        self._compiled = CompiledStep.read(loss, [*(metrics or ()), *(weighted_metrics or ())])
        weigh_loss_by_tokens(self)
        # What Keras made of an earlier step knows nothing of this.
        self.train_function = self.test_function = None

    @hints(
        {
            "num_train_epochs": "epochs",
            "per_device_train_batch_size": "batch_size",
            "max_length": "sequence_length",
            "max_seq_length": "sequence_length",
        }
    )
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
        *,
        packing: bool = True,
        train_on: Literal["response", "all"] = "response",
        template: str | None = None,
        sequence_length: int | None = None,
        seed: int = 0,
        on_bad_row: Literal["stop", "skip"] = "stop",
        on_long_row: Literal["truncate", "skip", "stop"] = "truncate",
    ) -> keras.callbacks.History:
        """Keras' `fit` on text as people have it.

        Args:
            x: Strings, (prompt, response) pairs or records, chat messages, a `.jsonl`, `.json`,
                `.csv`, `.txt`, `.parquet` or `.arrow` path or glob, `"tfds:NAME/SPLIT"`, a dict of
                such names with the weight of each in a mixture, a Hugging Face data set,
                `kerora.data.Batches`, or anything that Keras takes.
            y: Responses, where `x` holds the prompts.
            batch_size: Rows in a batch. Default: as many as make 1,024 positions when packed,
                else 8.
            validation_data: As `x`, or a tuple `(x, y)`.
            packing: Whether several examples share a row, with attention and loss confined to
                each. Families that cannot are padded, with a warning.
            train_on: `"response"` learns the response alone where a row has one, `"all"` every
                token.
            template: Layout of rows, such as `"Q: {question}\\nA: {answer}"`; `"chat"` makes the
                prompt a user's message and the response the assistant's. Default: by the names of
                the fields.
            sequence_length: Tokens in a row. Default: the preprocessor's.
            seed: Of the order of rows.
            on_bad_row: `"stop"` raises at a row that cannot be used, `"skip"` counts it.
            on_long_row: Of rows longer than `sequence_length`: `"truncate"` cuts the end off (a row
                whose prompt alone is too long is left out and counted, for nothing of its response
                would be left to learn), `"skip"` leaves them out and counts them, `"stop"` raises.

        The other arguments are those of `keras.Model.fit`.

        Returns:
            Keras' `History`.

        Raises:
            ValueError: For data that cannot be read (`kerora.DataError`, with file and line), or
                when nothing is trainable.

        Example:
        ```python
        model.fit("dolly.jsonl", epochs=2, validation_split=0.05)
        ```
        """
        self._check_trainable()
        options = DataOptions(
            packing, train_on, template, sequence_length, seed, on_bad_row, on_long_row
        )
        keras_arguments: dict[str, Any] = {
            "epochs": epochs,
            "verbose": verbose,
            "callbacks": callbacks,
            "initial_epoch": initial_epoch,
            "validation_freq": validation_freq,
        }
        if not isinstance(x, Batches) and is_token_data(x):
            check_token_data(x, tokenizer=self.preprocessor is not None)
            self._choose_learning_rate(
                steps_per_epoch and steps_per_epoch * (epochs - initial_epoch)
            )
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                sample_weight=sample_weight,
                validation_data=validation_data,
                validation_split=validation_split,
                shuffle=shuffle,
                class_weight=class_weight,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                **keras_arguments,
            )
        check_text_loss(self.loss)
        if isinstance(x, Batches):
            batches = x
        else:
            batches = text_batches(
                self,
                x,
                options,
                batch_size=batch_size,
                shuffle=shuffle,
                y=y,
                sample_weight=sample_weight,
                class_weight=class_weight,
            )
            warn_of_chat_template(self, batches)
        if validation_data is None and validation_split:
            batches, validation_data = batches.split(validation_split)
        if validation_data is not None:
            validation_data = self._validation_batches(
                validation_data, options, validation_batch_size or batch_size
            )
            validation_steps = validation_steps or validation_data.count_steps()
            validation_data = validation_data.repeat()
        steps_per_epoch = steps_per_epoch or batches.steps_per_epoch
        self._choose_learning_rate(steps_per_epoch * (epochs - initial_epoch))
        history = keras.Model.fit(
            self,
            batches.repeat(),
            steps_per_epoch=steps_per_epoch,
            validation_data=validation_data,
            validation_steps=validation_steps,
            shuffle=False,
            **keras_arguments,
        )
        if not isinstance(x, Batches):
            warn_of_lost_rows(batches)
        return history

    def _validation_batches(self, data: Any, options: DataOptions, batch_size: int | None) -> Any:
        if isinstance(data, Batches):
            return data
        # A list is rows; only a tuple is Keras' (x, y, sample_weight).
        x, y, sample_weight = (
            (*data, None, None)[:3] if isinstance(data, tuple) else (data, None, None)
        )
        return text_batches(
            self,
            x,
            options,
            batch_size=batch_size,
            shuffle=False,
            y=y,
            sample_weight=sample_weight,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        steps: int | None = None,
        packing: bool = True,
        train_on: Literal["response", "all"] = "response",
        template: str | None = None,
        sequence_length: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Keras' `evaluate` on the same kinds of data as `fit`.

        Example:
        ```python
        loss, accuracy = model.evaluate("heldout.jsonl")
        ```
        """
        text = x is not None and not isinstance(x, Batches) and not is_token_data(x)
        if text:
            options = DataOptions(packing, train_on, template, sequence_length)
            x = text_batches(
                self,
                x,
                options,
                batch_size=batch_size,
                shuffle=False,
                y=y,
                sample_weight=sample_weight,
            )
            warn_of_chat_template(self, x)
        try:
            if isinstance(x, Batches):
                check_text_loss(self.loss)
                steps = steps or x.count_steps()
                return keras.Model.evaluate(self, x.repeat(), steps=steps, **kwargs)
            if x is not None:
                check_token_data(x, tokenizer=self.preprocessor is not None)
            return super().evaluate(
                x, y, batch_size=batch_size, sample_weight=sample_weight, steps=steps, **kwargs
            )
        finally:
            self._take_values_back()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """KerasHub's `predict`."""
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._take_values_back()

    def _take_values_back(self) -> None:
        # On JAX the values lie outside the variables meanwhile. Keras' `fit` puts them back where
        # it is stopped between two steps; its `evaluate` and `predict` do not.
        if hasattr(self, "jax_state_sync"):
            self.jax_state_sync()

    def _check_trainable(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "Nothing in this model is trainable. Call `model.backbone.enable_lora(rank)` for "
                "an adapter, or set `model.trainable = True` to train all of it."
            )
        by_default = self._default_rate is not None and not self.optimizer.built
        if by_default and not adapter_configs(self):
            warn_user(
                f"All {self.count_params():,} parameters train, for the model holds no "
                "adapter: call `model.backbone.enable_lora(rank)` first if it should. Your own "
                "`compile` says that this is meant."
            )

    def _choose_learning_rate(self, steps: int | None) -> None:
        # A rate that was set by hand, or read from a checkpoint, stays.
        if self._default_rate is None or self._default_rate != _learning_rate(self.optimizer):
            return
        rate = default_learning_rate(adapted=bool(adapter_configs(self)), steps=steps)
        self.optimizer.learning_rate = _number_that_nobody_types(rate)
        self._default_rate = _learning_rate(self.optimizer)

    def keep_learning_rate(self) -> None:
        """Take the learning rate in use for every later `fit`, also where kerora chose it."""
        self._default_rate = None


def _number_that_nobody_types(rate: float) -> float:
    """The next float32, so that a rate that was set by hand is told from one that kerora chose."""
    return float(np.nextafter(np.float32(rate), np.float32(1)))


def _with_scaled_loss(optimizer: Any) -> Any:
    """An optimizer whose gradients are float16's to hold.

    Keras wraps it where the policy is `mixed_float16`, and not where the base is float16 too.
    """
    optimizer = keras.optimizers.get(optimizer)
    scaled = keras.optimizers.LossScaleOptimizer
    if optimizer is None or isinstance(optimizer, scaled):
        return optimizer
    return scaled(optimizer, name="loss_scale_optimizer")


def _learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def warn_of_chat_template(task: Any, batches: Batches) -> None:
    """Say which built-in chat template lays rows out, where it may not be the model's own."""
    rows = itertools.islice(batches.source_rows(), _LOOKED_AT_ROWS)
    warn_of_unchosen_chat_template(task, batches.encoder, rows)


def _as_objects(metrics: Any) -> Any:
    """Keras' short names for token accuracy as the metric that they stand for."""
    if metrics is None:
        return None
    names = ("accuracy", "acc", "sparse_categorical_accuracy")
    return [
        keras.metrics.SparseCategoricalAccuracy(name=m) if m in names else m
        for m in (metrics if isinstance(metrics, (list, tuple)) else [metrics])
    ]
