"""A KerasHub causal language model with kerora's methods."""

from __future__ import annotations

import os
import warnings
import weakref
from pathlib import Path
from typing import Any, Literal

import keras
import keras_hub

from kerora.adapters import (
    AdaptedModel,
    AdapterError,
    adapter_configs,
    as_own_class,
    count_trainable_parameters,
    extend,
)
from kerora.adapters.lifecycle import forget_compiled_functions
from kerora.backbone import Backbone
from kerora.cpu_memory import release_freed_memory, run_steps_one_by_one
from kerora.data import Batches, check_token_data, is_token_data
from kerora.data.chat_templates import read_chat_template
from kerora.default_learning_rates import ADAPTER_LEARNING_RATE, FULL_LEARNING_RATE
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.keras_lora import has_keras_lora, take_over_keras_lora
from kerora.keyword_hints import hints
from kerora.models.cpu_bfloat16 import compute_in_float32
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE
from kerora.models.loading import load_task_and_template
from kerora.training.fit_data import DataOptions, text_batches, warn_of_lost_rows
from kerora.training.losses import TokenLoss, check_text_loss
from kerora.training.rematerialisation import rematerialise_by_default
from kerora.training.step import CompiledStep, StepModel

if keras.backend.backend() == "jax":
    run_steps_one_by_one()


def from_preset(source: str | os.PathLike[str], **kwargs: Any) -> Task:
    """Load a causal language model of KerasHub, ready for kerora.

    Args:
        source: `"tiny_gemma"` (bundled), a KerasHub preset name, `hf://…`, `kaggle://…`, or a
            local folder: a KerasHub preset or a Hugging Face model; or a `.gguf` file.
        **kwargs: For KerasHub's own `from_preset`, such as `dtype="bfloat16"` (default: Keras' own,
            float32). Of a bfloat16 model JAX on a CPU takes the products alone in bfloat16, and
            computes the rest in float32.

    Returns:
        The task, a `GemmaCausalLM` say.

    Raises:
        ValueError: If there is no such source.

    Example:
    ```python
    model = kerora.from_preset("tiny_gemma")
    model.backbone.enable_lora(4)
    model.fit([{"instruction": "Say hello.", "response": "Hello."}])
    ```
    """
    model, template = load_task_and_template(source, **kwargs)
    task = adapt(model)
    release_freed_memory()
    task.source = os.fspath(source)
    task.chat_template = template
    return task


def adapt(model: keras.Model) -> Task:
    """Give a causal language model of KerasHub kerora's methods, in place.

    Args:
        model: A `keras_hub.models.CausalLM`, as `keras_hub` or `keras_nlp` loaded it.

    Returns:
        The same model, with the methods of `Task`; its backbone has those of `Backbone`. Where
        KerasHub's `enable_lora` was called, trained or not, an adapter that computes the same
        stands in its place.

    Raises:
        ValueError: If it is no causal language model, or has Keras' LoRA on a layer that holds no
            adapter.

    Example:
    ```python
    gemma = keras_hub.models.GemmaCausalLM.from_preset("gemma_2b_en")
    kerora.adapt(gemma)
    ```
    """
    if not isinstance(model, keras_hub.models.CausalLM):
        raise ValueError(
            "`adapt` takes a causal language model of KerasHub (a `GemmaCausalLM`, say). For any "
            f"other model use `kerora.add_adapter`. Received: {type(model).__name__}"
        )
    if isinstance(model, Task):
        return model
    if has_keras_lora(model):
        take_over_keras_lora(model)
    sampler, optimizer = model.sampler, model.optimizer
    compute_in_float32(model.backbone)
    extend(model.backbone, Backbone, "Backbone")
    extend(model, Task, "Task")
    model.backbone.held_by = weakref.ref(model)
    rematerialise_by_default(model.backbone)
    # What KerasHub compiled by itself gives way to kerora's defaults; what the user compiled stays.
    by_keras_hub = optimizer is not None and abs(float(optimizer.learning_rate) - 2e-5) < 1e-12
    if optimizer is None or (by_keras_hub and not optimizer.built):
        model.compile(sampler=sampler)
    else:
        config = model._compile_config.config
        model._read_compiled(config["loss"], config.get("metrics"), config["weighted_metrics"])
    return model


class Task(StepModel, AdaptedModel):
    """Mixin of a KerasHub causal language model: kerora's `fit` and what belongs to it."""

    source: str | None = None
    _chat_template: str | None = None

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that conversations are rendered by; None for a built-in one.

        Set it to Jinja source, the path of a file of it, or the name of a built-in one: `"chatml"`,
        `"gemma"`, `"llama3"`, `"plain"` or `"qwen"`. It is saved with adapters and presets, and
        read with them.
        """
        return self._chat_template

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self._chat_template = None if template is None else read_chat_template(template)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        return adapt(super().from_config(config, custom_objects))

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
            optimizer: Default: Adam, gradients clipped to a global norm of 1, at a learning rate of
                5e-4 for adapters and 2e-5 for full fine-tuning.
            loss: Default: the mean cross-entropy over supervised tokens (`kerora.TokenLoss`).
            weighted_metrics: Default: token accuracy.
            sampler: As in KerasHub. Default: the one that the model has, or KerasHub's own.
            **kwargs: As in `keras.Model.compile`.
        """
        self._default_optimizer = optimizer == "auto"
        if self._default_optimizer:
            optimizer = keras.optimizers.Adam(FULL_LEARNING_RATE, global_clipnorm=1.0)
        if loss == "auto":
            loss = TokenLoss()
        if weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        metrics = _as_objects(kwargs.pop("metrics", None))
        weighted_metrics = _as_objects(weighted_metrics)
        self._read_compiled(loss, metrics, weighted_metrics)
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

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _read_compiled(self, loss: Any, metrics: Any, weighted_metrics: Any) -> None:
        self._compiled = CompiledStep.read(loss, [*(metrics or ()), *(weighted_metrics or ())])

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
            template: Layout of rows, such as `"Q: {question}\\nA: {answer}"`. Default: by the
                names of the fields.
            sequence_length: Tokens in a row. Default: the preprocessor's.
            seed: Of the order of rows.
            on_bad_row: `"stop"` raises at a row that cannot be used, `"skip"` counts it.
            on_long_row: `"truncate"`, `"skip"` or `"stop"` at rows longer than `sequence_length`.

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
        self._choose_learning_rate()
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
        if validation_data is None and validation_split:
            batches, validation_data = batches.split(validation_split)
        if validation_data is not None:
            validation_data = self._validation_batches(
                validation_data, options, validation_batch_size or batch_size
            )
            validation_steps = validation_steps or validation_data.steps_per_epoch
            validation_data = validation_data.repeat()
        history = keras.Model.fit(
            self,
            batches.repeat(),
            steps_per_epoch=steps_per_epoch or batches.steps_per_epoch,
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
        if isinstance(x, Batches):
            check_text_loss(self.loss)
            steps = steps or x.steps_per_epoch
            return keras.Model.evaluate(self, x.repeat(), steps=steps, **kwargs)
        if x is not None:
            check_token_data(x, tokenizer=self.preprocessor is not None)
        return super().evaluate(
            x, y, batch_size=batch_size, sample_weight=sample_weight, steps=steps, **kwargs
        )

    def _choose_learning_rate(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "Nothing in this model is trainable. Call `model.backbone.enable_lora(rank)` for "
                "an adapter, or set `model.trainable = True` to train all of it."
            )
        if self._default_optimizer and not self.optimizer.built:
            adapted = bool(adapter_configs(self))
            if not adapted:
                warnings.warn(
                    f"All {self.count_params():,} parameters train, for the model holds no "
                    "adapter: call `model.backbone.enable_lora(rank)` first if it should. Your own "
                    "`compile` says that this is meant.",
                    stacklevel=3,
                )
            self.optimizer.learning_rate = ADAPTER_LEARNING_RATE if adapted else FULL_LEARNING_RATE

    def save_to_preset(self, preset_dir: Any, **kwargs: Any) -> None:
        """Write a KerasHub preset that KerasHub itself loads, with or without kerora.

        Warns where the model was loaded from a Hugging Face folder with values that KerasHub's
        configuration of it has no place for.

        Raises:
            AdapterError: If the model holds adapters, which a preset has no place for.
        """
        if adapter_configs(self):
            raise AdapterError(
                "A KerasHub preset holds a base alone, and this model holds adapters: "
                f"{list(adapter_configs(self))}. Merge them first (`kerora.merge_adapter`), or "
                "keep them with `save_adapter`."
            )
        if names := getattr(self.backbone, "set_on_its_layers", ()):
            warnings.warn(
                f"A KerasHub preset has no place for {', '.join(names)} as this model's Hugging "
                "Face folder has them: loaded from the preset, it gives other answers. Save an "
                "adapter instead, and `kerora merge` it into that folder.",
                stacklevel=2,
            )
        with as_own_class(self), as_own_class(self.backbone):
            self.save_to_preset(preset_dir, **kwargs)
        if self.chat_template is not None:
            path = Path(preset_dir) / CHAT_TEMPLATE_FILE
            path.write_text(self.chat_template, encoding="utf-8")

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, of how many, per kind of target."""
        print(count_trainable_parameters(self))

    def save_adapter(self, folder: Any, name: str = "default") -> None:
        """Write an adapter as a PEFT folder; see `kerora.interchange.save_adapter`."""
        save_adapter(self, folder, name)

    def load_adapter(
        self, folder: Any, name: str = "default", *, force: bool = False, leave_out: Any = ()
    ) -> None:
        """Load a PEFT folder or a `.lora.h5` file; see `kerora.interchange.load_adapter`."""
        load_adapter(self, folder, name, force=force, leave_out=leave_out)
        forget_compiled_functions(self)


def _as_objects(metrics: Any) -> Any:
    """Keras' short names for token accuracy as the metric that they stand for."""
    if metrics is None:
        return None
    names = ("accuracy", "acc", "sparse_categorical_accuracy")
    return [
        keras.metrics.SparseCategoricalAccuracy(name=m) if m in names else m
        for m in (metrics if isinstance(metrics, (list, tuple)) else [metrics])
    ]
