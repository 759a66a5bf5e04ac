"""KerasHub's own converters from Hugging Face folders.

KerasHub keeps them private, so this is the one file that reaches for them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
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

_TIED_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"
_INNER = "model.language_model."
_ENCODER_NAMES = ("roberta.", "albert.", "distilbert.")
# The shapes of four-bit blocks and their scales that unpack to a tensor of a given shape.
_PACKED = {
    "_blocks": lambda experts, inputs, outputs: (experts, outputs, inputs // 2, 1),
    "_scales": lambda experts, inputs, outputs: (experts, outputs, inputs // 2),
}


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
    from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

    loader = TransformersPresetLoader(source, config)
    with told_of_source(f"KerasHub cannot build a model from the config.json of '{source}'"):
        return loader.load_backbone(loader.check_backbone_class(), load_weights=False, **kwargs)


def causal_lm(source: str, config: dict[str, Any], backbone: keras.Model, **kwargs: Any) -> Any:
    """The causal language model around a backbone, with the folder's tokenizer.

    Args:
        source: The folder or handle that the tokenizer is read from.
        config: Its completed `config.json`.
        backbone: The backbone.
        **kwargs: `preprocessor` (None for none) and what the task's constructor takes.

    Raises:
        ModelSourceError: If KerasHub has no causal language model around such a backbone.
    """
    from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

    loader = TransformersPresetLoader(source, config)
    # Of two classes around one backbone KerasHub's own search takes either.
    name = loader.check_backbone_class().__name__.replace("Backbone", "CausalLM")
    kind = getattr(keras_hub.models, name, None)
    if kind is None or config["model_type"].endswith("_assistant"):
        raise ModelSourceError(
            f"KerasHub has no causal language model of type '{config['model_type']}'. Its "
            "backbone alone is loaded by `kerora.models.loading.load_backbone`."
        )
    with told_of_source(f"KerasHub cannot make a task, with its tokenizer, of '{source}'"):
        return loader.load_task(kind, False, False, backbone=backbone, **kwargs)


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
            if tensors is None and preset_file(preset, SINGLE_FILE) is not None:
                self.safetensor_config = None  # as in transformers, which looks at it first
            self.taken: set[str] = set()
            self.stood_in: set[str] = set()

        def get_tensor(self, hf_weight_key):
            if hf_weight_key == _TIED_HEAD and text_config(config).get("tie_word_embeddings"):
                # The head of a tied model is not stored twice.
                hf_weight_key = f"model.{_TABLE}"
            try:
                tensor = self.stored(hf_weight_key)
            except (SafetensorError, KeyError):
                tensor = self.stand_in(hf_weight_key)
            self.taken.add(hf_weight_key)
            return tensor.view(UnroundedArray)

        def stored(self, key: str) -> np.ndarray:
            if tensors is None:
                return super().get_tensor(key)
            return tensors[self.get_prefixed_key(key, tensors)]

        def stand_in(self, key: str) -> np.ndarray:
            # A language model alone is stored without the name that it has inside one that sees.
            if key.startswith(_INNER):
                key = "model." + key.removeprefix(_INNER)
                self.taken.add(key)
                return self.stored(key)
            if key.startswith(_ENCODER_NAMES):
                # A bare encoder is stored without the name that it has below a head.
                key = key.partition(".")[2]
                self.taken.add(key)
                return self.stored(key)
            for ending, shape in _PACKED.items():
                if key.endswith(ending):
                    # GPT-OSS's experts as plain tensors; `load_plain_experts` fills them in.
                    self.stood_in.add(key)
                    plain = self.stored(key.removesuffix(ending))
                    experts, inputs, outputs = plain.shape
                    return np.zeros(shape(experts, inputs, outputs), "uint8")
            return self.stored(key)

        def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
            tensor = stored = self.get_tensor(hf_weight_key)
            try:
                if hook_fn is not None:
                    tensor = hook_fn(tensor, list(keras_variable.shape))
                # Backends widen a bfloat16 array by way of further copies.
                if keras_variable.dtype == "float32":
                    tensor = tensor.astype("float32", copy=False)
                keras_variable.assign(np.asarray(tensor))
            except (ValueError, TypeError, IndexError) as error:
                raise ModelSourceError(
                    f"The tensor '{hf_weight_key}' of '{source}' has the shape {stored.shape}, "
                    f"which does not fit what its config.json makes it: {str(error)[:300]}"
                ) from error

    jax_memory_cleanup(backbone)
    with told_of_source(f"The weights of '{source}' cannot be read"), _Loader(source) as loader:
        # Qwen 3.5's converter prints an audit of its own.
        with contextlib.redirect_stdout(io.StringIO()):
            converter_of_type(config["model_type"]).convert_weights(backbone, loader, config)
        if config["model_type"] == "roberta":
            _add_token_type(backbone, loader)
        if config["model_type"] == "gpt_oss":
            _load_plain_experts(backbone, loader)
        files = [tensors] if tensors is not None else loader.safetensor_files.values()
        held = {name for file in files for name in file.keys()}  # noqa: SIM118 - not a dict
    if text_config(config).get("tie_word_embeddings"):
        loader.taken.add(_TIED_HEAD)
    _check_all_taken(source, held, loader.taken)


def _add_token_type(backbone: keras.Model, loader: Any) -> None:
    # KerasHub's RoBERTa has no token types; `transformers` adds the first one's to every token.
    first = loader.get_tensor("roberta.embeddings.token_type_embeddings.weight")[0]
    positions = backbone.embeddings.position_embedding.position_embeddings
    positions.assign(keras.ops.convert_to_numpy(positions) + np.asarray(first, "float32"))


def _load_plain_experts(backbone: keras.Model, loader: Any) -> None:
    # KerasHub reads GPT-OSS's experts in four bits only; transformers also saves them whole.
    for index, block in enumerate(backbone.transformer_layers):
        experts = block.sparse_moe_block.experts
        for name in ("gate_up_proj", "down_proj"):
            key = f"model.layers.{index}.mlp.experts.{name}"
            if f"{key}_blocks" in loader.stood_in:
                getattr(experts, name).assign(np.asarray(loader.get_tensor(key)))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that describes the language model."""
    return config.get("text_config", config)


def _check_all_taken(source: str, held: set[str], taken: set[str]) -> None:
    # Converters name some tensors without their leading parts.
    left = sorted(
        name
        for name in held
        if (re.search(r"(^|\.)(layers|layer|h)\.\d+\.", name) or name == _TIED_HEAD)
        and not re.match(r"mtp\.", name)
        and not name.endswith("inv_freq")
        and not any(name == key or name.endswith("." + key) for key in taken)
    )
    if left:
        raise ModelSourceError(
            f"KerasHub's backbone has no place for {len(left)} of the tensors of '{source}', so it "
            f"would not be the same model: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
        )
