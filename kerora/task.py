"""A KerasHub causal language model with kerora's methods."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

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
from kerora.data.chat_templates import read_chat_template
from kerora.interchange import load_adapter, save_adapter
from kerora.interchange.keras_lora import has_keras_lora, take_over_keras_lora
from kerora.models.cpu_bfloat16 import compute_in_float32
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE
from kerora.models.loading import has_template_place, load_task_and_template
from kerora.models.saved_preset import save_word_splitting, saved_completely
from kerora.models.set_on_layers import warn_of_set
from kerora.text_generation import TextGeneration
from kerora.text_training import TextTraining
from kerora.training.rematerialisation import rematerialise_by_default
from kerora.user_warning import warn_user

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
    task.source_has_template_place = has_template_place(source)
    task.chat_template = template
    return task


def adapt(model: keras.Model) -> Task:
    """Give a causal language model of KerasHub kerora's methods, in place.

    Args:
        model: A `keras_hub.models.CausalLM`, as `keras_hub` or `keras_nlp` loaded it.

    Returns:
        The same model, with the methods of `Task`; its backbone has those of `Backbone`. Where
        KerasHub's `enable_lora` was called, trained or not, an adapter that computes the same
        stands in its place. KerasHub's models do not know their folder's chat template:
        conversations get a built-in one, with a warning, unless `model.chat_template` is set;
        `kerora.from_preset` reads the model's own.

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
    if optimizer is None:
        model.compile(sampler=sampler)
        return model
    config = model._compile_config.config
    if not optimizer.built and _is_keras_hubs_default(config):
        chosen = {name: config[name] for name in ("run_eagerly", "steps_per_execution")}
        model.compile(sampler=sampler, jit_compile=config["jit_compile"], **chosen)
    else:
        model._read_compiled(config["loss"], config.get("metrics"), config["weighted_metrics"])
    return model


def _is_keras_hubs_default(compiled: dict[str, Any]) -> bool:
    """Whether optimizer, loss and metrics are those of KerasHub's `compile` without arguments."""
    optimizer, metrics = compiled["optimizer"], compiled["weighted_metrics"]
    if compiled["metrics"] or compiled["loss_weights"] or not isinstance(metrics, list):
        return False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    # A schedule may have no config, and is no number in any case.
    return (
        isinstance(optimizer.learning_rate, keras.Variable)
        and _is_made_alike(optimizer, keras.optimizers.Adam(2e-5))
        and _is_made_alike(compiled["loss"], loss)
        and len(metrics) == 1
        and _is_made_alike(metrics[0], accuracy)
    )


def _is_made_alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    # The name is numbered by how many there were before.
    return {**one.get_config(), "name": None} == {**other.get_config(), "name": None}


class Task(TextTraining, TextGeneration, AdaptedModel):
    """Mixin of a KerasHub causal language model: kerora's `fit` and `generate`, and its files."""

    source: str | None = None
    # Whether a model at its source can bring a chat template: one without has none to miss.
    source_has_template_place: bool = False
    _chat_template: str | None = None

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that conversations are rendered by; None for a built-in one.

        Set it to Jinja source, the path of a file of it, or the name of a built-in one: `"chatml"`,
        `"gemma"`, `"llama3"`, `"phi3"`, `"plain"` or `"qwen"`. It is saved with adapters and
        presets, and read with them.
        """
        return self._chat_template

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self._chat_template = None if template is None else read_chat_template(template)

    def get_config(self) -> dict[str, Any]:
        known = {"source": self.source, "chat_template": self.chat_template}
        return {**super().get_config(), **known}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        task = adapt(super().from_config(config, custom_objects))
        task.source, task.chat_template = config["source"], config["chat_template"]
        return task

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
        warn_of_set(self.backbone)
        with as_own_class(self), as_own_class(self.backbone), saved_completely(self):
            self.save_to_preset(preset_dir, **kwargs)
        if save_word_splitting(self, Path(preset_dir)):
            warn_user(
                "A KerasHub preset has no place for how this model's tokenizer.json splits text "
                "into words: loaded by KerasHub alone, the model is given other tokens for some "
                "texts. `kerora.from_preset` gives it the same. For other programs save an "
                "adapter, and `kerora merge` it into the Hugging Face folder."
            )
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
