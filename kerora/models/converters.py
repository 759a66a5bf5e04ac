"""KerasHub's own converters from Hugging Face folders.

KerasHub keeps them private, so this is the one file that reaches for them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import keras
import numpy as np

from kerora.adapters.saved_model import own_class
from kerora.models.errors import ModelSourceError

_TIED_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"


class UnroundedArray(np.ndarray):
    """An array that stays exact where a converter would round it to float16.

    KerasHub's Mistral converter sends every weight through float16, whatever the checkpoint's type
    is: float32 loses 13 bits, and bfloat16 overflows.
    """

    def astype(self, dtype, *args, **kwargs):
        if np.dtype(dtype) == np.float16:
            return self
        return super().astype(dtype, *args, **kwargs)


def read_config(source: str) -> dict[str, Any]:
    """The `config.json` of a preset: a folder, a KerasHub name or a `hf://`, `kaggle://` handle.

    Raises:
        ModelSourceError: If there is none, or it is not a JSON object.
    """
    from keras_hub.src.utils.preset_utils import load_json

    try:
        config = load_json(source)
    except FileNotFoundError as error:
        raise ModelSourceError(f"'{source}' holds no config.json.") from error
    except ValueError as error:
        raise ModelSourceError(f"The config.json of '{source}' is not valid: {error}") from error
    if not isinstance(config, dict):
        raise ModelSourceError(
            f"The config.json of '{source}' must be a JSON object. "
            f"Received: {type(config).__name__}"
        )
    return config


def preset_file(source: str, name: str) -> str | None:
    """The local path of a preset's file `name`, fetched if need be; None where it has none."""
    from keras_hub.src.utils.preset_utils import get_file

    try:
        return get_file(source, name)
    except FileNotFoundError:
        return None


def converter_of_type(model_type: str) -> ModuleType:
    """The converter for a Hugging Face `model_type`.

    Raises:
        ModelSourceError: If KerasHub has none.
    """
    from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

    try:
        return TransformersPresetLoader("", {"model_type": model_type}).converter
    except ValueError as error:
        raise ModelSourceError(
            f"KerasHub cannot read Hugging Face models of type '{model_type}'."
        ) from error


def converter_of_backbone(backbone: keras.Model) -> ModuleType | None:
    """The converter that fills this kind of backbone from a Hugging Face folder, if any."""
    from keras_hub.src.utils.transformers import preset_loader

    kind = own_class(backbone)
    converters = [
        value
        for name, value in vars(preset_loader).items()
        if name.startswith("convert_") and hasattr(value, "convert_weights")
    ]
    for converter in converters:
        if converter.backbone_cls is kind:
            return converter
    # A backbone whose subclass is read from Hugging Face folders has the same layers: Llama 2 is
    # LlamaBackbone, and only Llama3Backbone has a converter.
    for converter in converters:
        if issubclass(converter.backbone_cls, kind) and kind.__name__ != "Backbone":
            return converter
    return None


@contextlib.contextmanager
def matrices_left_empty() -> Iterator[None]:
    """Within this context new matrices are zero: random numbers that a file is about to replace
    cost time, and memory for several copies of the largest table."""
    add_weight = keras.layers.Layer.add_weight

    def add_empty_weight(self, shape=None, initializer=None, *args, **kwargs):
        is_matrix = isinstance(shape, (tuple, list)) and len(shape) > 1
        return add_weight(self, shape, "zeros" if is_matrix else initializer, *args, **kwargs)

    keras.layers.Layer.add_weight = add_empty_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def load_weights(
    backbone: keras.Model,
    source: str,
    config: dict[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Fill a backbone from a Hugging Face folder, one tensor at a time.

    Args:
        backbone: A backbone that was built for `config`.
        source: The folder, or a `hf://` handle.
        config: Its `config.json`.
        tensors: Its weights by Hugging Face name, read one by one. Default: the folder's
            safetensors.

    Raises:
        ModelSourceError: If the weights lack a tensor, cannot be read, or hold one that the
            backbone has no place for.
    """
    from keras_hub.src.utils.preset_utils import jax_memory_cleanup
    from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader
    from safetensors import SafetensorError

    class _Loader(SafetensorLoader):
        def __init__(self, preset: str) -> None:
            super().__init__(preset)
            self.taken: set[str] = set()

        def get_tensor(self, hf_weight_key):
            if hf_weight_key == _TIED_HEAD and text_config(config).get("tie_word_embeddings"):
                # The head of a tied model is not stored twice.
                hf_weight_key = f"model.{_TABLE}"
            if tensors is None:
                tensor = super().get_tensor(hf_weight_key)
            else:
                tensor = tensors[self.get_prefixed_key(hf_weight_key, tensors)]
            self.taken.add(hf_weight_key)
            return tensor.view(UnroundedArray)

        def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
            tensor = self.get_tensor(hf_weight_key)
            if hook_fn is not None:
                tensor = hook_fn(tensor, list(keras_variable.shape))
            # Backends widen a bfloat16 array by way of further copies.
            if keras_variable.dtype == "float32":
                tensor = tensor.astype("float32", copy=False)
            keras_variable.assign(np.asarray(tensor))

    jax_memory_cleanup(backbone)
    try:
        with _Loader(source) as loader:
            converter_of_type(config["model_type"]).convert_weights(backbone, loader, config)
            files = [tensors] if tensors is not None else loader.safetensor_files.values()
            held = {name for file in files for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError) as error:
        raise ModelSourceError(f"The weights of '{source}' cannot be read: {error}") from error
    _check_all_taken(source, held, loader.taken)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that describes the language model."""
    return config.get("text_config", config)


def _check_all_taken(source: str, held: set[str], taken: set[str]) -> None:
    # Converters name some tensors without their leading parts.
    left = sorted(
        name
        for name in held
        if re.search(r"(^|\.)layers\.\d+\.", name)
        and not name.endswith("inv_freq")
        and not any(name == key or name.endswith("." + key) for key in taken)
    )
    if left:
        raise ModelSourceError(
            f"KerasHub's backbone has no place for {len(left)} of the tensors of '{source}', so it "
            f"would not be the same model: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
        )
