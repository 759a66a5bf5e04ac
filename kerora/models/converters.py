"""KerasHub's own converters from Hugging Face folders.

KerasHub keeps them private: this file and `weight_loading.py` alone reach for them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import keras_hub
import numpy as np

from kerora.adapters.saved_model import own_class
from kerora.json_file import read_json_object
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.huggingface_folder import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorPlace,
    all_places,
    shards,
)

# Models whose converter makes the parts inside without telling them the type of the weights.
_UNTYPED_PARTS = ("blip-2", "metaclip_2", "sam3_video")


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
    try:
        path = preset_file(source, "config.json")
    except ValueError as error:
        raise ModelSourceError(f"'{source}' cannot be found: {error}") from error
    if path is None:
        raise ModelSourceError(f"'{source}' holds no config.json.")
    return read_json_object(path, ModelSourceError)


def preset_file(source: str, name: str) -> str | None:
    """The local path of a preset's file `name`, fetched if need be; None where it has none."""
    from keras_hub.src.utils.preset_utils import get_file

    try:
        return get_file(source, name)
    except FileNotFoundError:
        return None


def source_places(source: str) -> dict[str, TensorPlace]:
    """Where each tensor of a Hugging Face folder or handle lies, fetched if need be.

    Raises:
        ModelSourceError: If a file is missing or damaged, or the index names one elsewhere.
    """
    single, index = preset_file(source, SINGLE_FILE), preset_file(source, INDEX_FILE)
    if single is None and index is not None:
        for name in set(shards(Path(index)).values()):
            preset_file(source, name)
    config = preset_file(source, "config.json")
    return all_places(Path(config or source).parent if config else Path(source))


def empty_backbone(source: str, config: dict[str, Any], **kwargs: Any) -> keras.Model:
    """The backbone for a Hugging Face configuration, without its weights.

    Args:
        source: The folder or handle that the configuration belongs to.
        config: Its completed `config.json`.
        **kwargs: Arguments for the backbone's constructor that replace the converter's.
    """
    loader = _preset_loader(source, config)
    inner: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if config["model_type"] in _UNTYPED_PARTS and kwargs.get("dtype") is not None:
        inner = _default_dtype(kwargs["dtype"])
    with told_of_source(f"KerasHub cannot build a model from the config.json of '{source}'"), inner:
        return loader.load_backbone(loader.check_backbone_class(), load_weights=False, **kwargs)


@contextlib.contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def causal_lm(
    source: str,
    config: dict[str, Any],
    backbone: keras.Model,
    make_tokenizer: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """The causal language model around a backbone, with the folder's tokenizer.

    Args:
        source: The folder or handle that the tokenizer is read from.
        config: Its completed `config.json`.
        backbone: The backbone.
        make_tokenizer: Makes the tokenizer, given its class. Default: KerasHub's converter does.
        **kwargs: `preprocessor` (None for none) and what the task's constructor takes.

    Raises:
        ModelSourceError: If KerasHub has no causal language model around such a backbone.
    """
    loader = _preset_loader(source, config)
    # Of two classes around one backbone KerasHub's own search takes either.
    name = loader.check_backbone_class().__name__.replace("Backbone", "CausalLM")
    kind = getattr(keras_hub.models, name, None)
    if kind is None:
        raise ModelSourceError(
            f"KerasHub has no causal language model of type '{config['model_type']}'. Its "
            "backbone alone is loaded by `kerora.models.loading.load_backbone`."
        )
    if make_tokenizer is not None:
        loader.load_tokenizer = make_tokenizer
    with told_of_source(f"KerasHub cannot make a task, with its tokenizer, of '{source}'"):
        return loader.load_task(kind, False, False, backbone=backbone, **kwargs)


def sentencepiece_proto(fields: dict[str, Any]) -> bytes:
    """The SentencePiece model that a `tokenizer.json` of pieces and merges was made from.

    Args:
        fields: The contents of the file.
    """
    from keras_hub.src.utils.transformers import convert_gemma3

    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = schema.ModelProto.FromString(convert_gemma3._build_sentencepiece_proto(fields))
    # KerasHub's function is written for Gemma, which puts no space before a text.
    steps = [fields.get("normalizer") or {}, fields.get("pre_tokenizer") or {}]
    steps += [part for step in steps for part in step.get("normalizers", ())]
    proto.normalizer_spec.add_dummy_prefix = any(
        step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always")
        for step in steps
        if step
    )
    return proto.SerializeToString()


def converter_of_type(model_type: str) -> ModuleType:
    """The converter for a Hugging Face `model_type`.

    Raises:
        ModelSourceError: If KerasHub has none.
    """
    try:
        return _preset_loader("", {"model_type": model_type}).converter
    except ValueError as error:
        raise ModelSourceError(
            f"KerasHub cannot read Hugging Face models of type '{model_type}'."
        ) from error


def _preset_loader(source: str, config: dict[str, Any]) -> Any:
    from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

    loader = TransformersPresetLoader(source, config)
    if config["model_type"] == "gemma3n":
        from kerora.models import gemma3n_converter

        loader.converter = gemma3n_converter
    return loader


def converter_of_backbone(backbone: keras.Model) -> ModuleType | None:
    """The converter that fills this kind of backbone from a Hugging Face folder, if any."""
    from keras_hub.src.utils.transformers import preset_loader

    from kerora.models import gemma3n_converter

    kind = own_class(backbone)
    converters = [gemma3n_converter] + [
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
        # SAM 3 gives its tables of angles as they are, and no file holds them.
        is_random = is_matrix and not isinstance(initializer, np.ndarray)
        return add_weight(self, shape, "zeros" if is_random else initializer, *args, **kwargs)

    keras.layers.Layer.add_weight = add_empty_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that describes the language model."""
    return config.get("text_config", config)
