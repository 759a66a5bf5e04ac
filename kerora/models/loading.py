"""Loading a causal language model by the name of where it lies."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from kerora.json_file import read_json_object, read_text
from kerora.lazy_tensorflow import tensorflow_stood_in_for
from kerora.models.added_tokens import append_added_tokens
from kerora.models.config_check import check_config, most_values
from kerora.models.converters import (
    causal_lm,
    converter_of_type,
    empty_backbone,
    matrices_left_empty,
    preset_file,
    read_config,
    source_places,
    text_config,
)
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.folder_tokenizers import tokenizer_maker
from kerora.models.gguf_model import as_huggingface_folder, gguf_chat_template, is_gguf
from kerora.models.huggingface_configs import complete_config
from kerora.models.huggingface_fixes import constructor_arguments, mend_layers
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE, FolderTensors, all_places
from kerora.models.huggingface_tokenizer import mend_tokenizer, mistral_preprocessor
from kerora.models.named_templates import PLAIN, WITH_TOOLS, one_template
from kerora.models.preset_folder import preset_checked
from kerora.models.refused_families import check_backbone, check_language_model
from kerora.models.saved_preset import restore_word_splitting
from kerora.models.set_on_layers import warning_when_saved
from kerora.models.weight_limit import weights_limited
from kerora.models.weight_loading import load_weights as fill_with_weights

CHECKED_BACKBONES = (
    *("bert", "roberta", "xlm-roberta", "albert", "distilbert", "esm"),
    *("bart", "t5gemma", "t5gemma2"),
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "swin"),
    *("metaclip_2", "paligemma", "blip-2", "sam3_video"),
)
# What KerasHub's `from_preset` makes something of; the rest it drops without a word.
_OPTIONS = ("dtype", "preprocessor", "load_weights", "name", "trainable", "compile")
_DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
BUNDLED = {"tiny_gemma": Path(__file__).parent / "tiny_gemma"}


def load_task(source: str | os.PathLike[str], **kwargs: Any) -> keras_hub.models.CausalLM:
    """Load a KerasHub causal language model.

    A Hugging Face folder is read tensor by tensor, and gives what `transformers` gives: what
    KerasHub's converters drop from its configuration is put back. Of a model that sees (Gemma 3, 3n
    and 4, Qwen 3.5) the language model alone is loaded. A GGUF file is read in the same way; its
    quantised weights become `dtype`.

    Args:
        source: The bundled `"tiny_gemma"`, the name of a KerasHub preset (`"gemma_2b_en"`), a
            handle (`"hf://org/model"`, `"kaggle://org/model/keras/variant"`), or a local folder: a
            KerasHub preset or a Hugging Face model with config.json and safetensors; or a `.gguf`
            file of a Llama, Mistral, Gemma, Qwen or SmolLM3.
        **kwargs: `dtype` of the weights (default: Keras' own, float32), `preprocessor` (None for a
            model without its tokenizer), `load_weights` (False for random ones), `name`,
            `trainable` and `compile`.

    Returns:
        The task, for example a `keras_hub.models.GemmaCausalLM`.

    Raises:
        ModelSourceError: If there is no such model, it is no causal language model, or KerasHub's
            layers cannot compute what it computes.
        TypeError: For another argument.

    Example:
    ```python
    model = load_task("tiny_gemma")
    model.generate("The cat", max_length=20)
    ```
    """
    return load_task_and_template(source, **kwargs)[0]


def load_task_and_template(
    source: str | os.PathLike[str], **kwargs: Any
) -> tuple[keras_hub.models.CausalLM, str | None]:
    """What `load_task` and `chat_template` give, from one reading of the source."""
    for option in kwargs:
        if option not in _OPTIONS:
            raise TypeError(
                f"`from_preset` takes {', '.join(_OPTIONS)} beside the source. Received: "
                f"{option}.{_near(option, _OPTIONS)}"
            )
    _check_dtype(kwargs.get("dtype"))
    with _file_systems(source):
        name = resolve_source(source)
        if is_gguf(name):
            with_tokenizer = "preprocessor" not in kwargs
            with as_huggingface_folder(name, with_tokenizer=with_tokenizer) as (folder, tensors):
                task = _load_huggingface(folder, tensors=tensors, **kwargs)
                return task, _own_template(folder)
        if _is_huggingface(name):
            return _load_huggingface(name, **kwargs), _own_template(name)
        with _preset(name, kwargs):
            task = keras_hub.models.CausalLM.from_preset(name, **kwargs)
        _check_preprocessor(task.preprocessor, name)
        if task.preprocessor is not None and name not in keras_hub.models.CausalLM.presets:
            restore_word_splitting(task.preprocessor.tokenizer, name)
        return task, _own_template(name)


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, str):
        return
    try:
        of_weights = keras.dtype_policies.get(dtype).variable_dtype
    except ValueError:
        of_weights = ""
    if "float" not in of_weights:
        raise ModelSourceError(
            f"`dtype` is the type of the weights: {', '.join(_DTYPES)}. Received: {dtype!r}."
            f"{_near(dtype, _DTYPES)}"
        )


def _check_preprocessor(preprocessor: Any, name: str) -> None:
    if preprocessor is None:
        return
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if not isinstance(tokenizer, keras_hub.tokenizers.Tokenizer):
        raise ModelSourceError(
            f"The task.json of '{name}' must name a preprocessor with its tokenizer, or null. "
            f"Received: {type(preprocessor).__name__} with {type(tokenizer).__name__}"
        )


def _preset(name: str, kwargs: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    if name in keras_hub.models.Backbone.presets:
        return contextlib.nullcontext()  # KerasHub's own
    return preset_checked(name, has_weights=kwargs.get("load_weights", True))


def resolve_source(source: str | os.PathLike[str]) -> str:
    """The source as KerasHub understands it: a preset's name, a handle, or a folder that exists; or
    the path of a GGUF file.

    Raises:
        ModelSourceError: If it is none of these.
    """
    name = os.path.expanduser(os.fspath(source))
    folder = BUNDLED.get(name, Path(name))
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if name in keras_hub.models.CausalLM.presets or "://" in name:
        return name
    if folder.is_file():
        if is_gguf(name):
            return name
        raise ModelSourceError(f"A model is a folder or a .gguf file. Received the file '{name}'.")
    if name in keras_hub.models.Backbone.presets:
        raise ModelSourceError(f"'{name}' is a KerasHub preset, but no causal language model.")
    known = [*BUNDLED, *keras_hub.models.CausalLM.presets]
    raise ModelSourceError(
        f"There is no folder and no KerasHub preset '{name}'.{_near(name, known)} A source is "
        f"one of: {', '.join(BUNDLED)}; a KerasHub preset; hf://org/model; kaggle://…; a local "
        "folder; a .gguf file."
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _file_systems(source: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Keeps KerasHub from importing TensorFlow for its file systems where the source is on none."""
    scheme, found, _ = os.fspath(source).partition("://")
    if found and scheme not in ("hf", "kaggle", "modelscope"):
        return contextlib.nullcontext()
    return tensorflow_stood_in_for()


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelSourceError(
            f"The folder '{folder}' holds no config.json: it is neither a KerasHub preset nor a "
            "Hugging Face model."
        )
    config = read_config(str(folder))
    if "registered_name" not in config and "model_type" not in config:
        raise ModelSourceError(
            f"The config.json of '{folder}' has neither `registered_name` (a KerasHub preset) nor "
            f"`model_type` (a Hugging Face model). Its keys: {', '.join(sorted(config)) or 'none'}"
        )
    if "model_type" in config and not any(folder.glob("*.safetensors")):
        raise ModelSourceError(
            f"The folder '{folder}' holds no *.safetensors file. Pickled weights (.bin, .pt) are "
            "never read: load the model in transformers and save it with `save_pretrained`."
        )
    if "model_type" in config:
        all_places(folder)  # damaged files, and an index that names others, are told here


def _is_huggingface(name: str) -> bool:
    if name in keras_hub.models.CausalLM.presets:
        return False
    config = read_config(name)
    return "registered_name" not in config and "model_type" in config


def load_backbone(source: str | os.PathLike[str], **kwargs: Any) -> keras_hub.models.Backbone:
    """Load the backbone of a Hugging Face folder, whether or not it is a causal language model.

    Of a T5Gemma 2 encoder and decoder are loaded for text, without the vision tower. Of an image
    classifier (ViT, DeiT, DINOv2, Swin) the encoder is loaded, and of a SAM 3 the detector without
    the tracker. MetaCLIP 2, PaliGemma and BLIP-2 are loaded whole.

    Args:
        source: A local folder or a `hf://` handle.
        **kwargs: `dtype` of the weights (default: Keras' own, float32), and `load_weights` (False
            for random ones).

    Raises:
        ModelSourceError: If there is no such model, or KerasHub's layers cannot compute what it
            computes.

    Example:
    ```python
    backbone = load_backbone("models/bert-base-uncased")
    ```
    """
    with _file_systems(source):
        name = resolve_source(source)
        if not _is_huggingface(name):
            with _preset(name, kwargs):
                return keras_hub.models.Backbone.from_preset(name, **kwargs)
        tensors = FolderTensors(source_places(name))
        config = _checked_config(name, tensors)
        check_backbone(name, config["model_type"], CHECKED_BACKBONES)
        return warning_when_saved(_load_huggingface_backbone(name, config, tensors, **kwargs))


def load_empty_backbone(
    source: str | os.PathLike[str], dtype: Any = None
) -> keras_hub.models.Backbone:
    """The backbone of a Hugging Face folder or a KerasHub preset, its matrices zero.

    Args:
        source: As for `load_task`, but a GGUF file.
        dtype: Of the weights.

    Raises:
        ModelSourceError: If there is no such model, or KerasHub's layers cannot compute what it
            computes.
    """
    with _file_systems(source):
        name = resolve_source(source)
        if _is_huggingface(name):
            tensors = FolderTensors(source_places(name))
            with matrices_left_empty():
                return _new_backbone(name, _checked_config(name, tensors), tensors, dtype)
        with matrices_left_empty(), _preset(name, {}):
            return keras_hub.models.Backbone.from_preset(name, load_weights=False, dtype=dtype)


def _load_huggingface_backbone(
    name: str,
    config: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: Any = None,
    load_weights: bool = True,
) -> keras_hub.models.Backbone:
    if not load_weights:
        return _new_backbone(name, config, tensors, dtype)
    with matrices_left_empty():
        backbone = _new_backbone(name, config, tensors, dtype)
    fill_with_weights(backbone, name, config, tensors)
    return backbone


def _new_backbone(
    name: str,
    config: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: Any = None,
) -> keras_hub.models.Backbone:
    converter_of_type(config["model_type"])
    limit: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(tensors, FolderTensors):
        limit = weights_limited(most_values(tensors.places), name)
    with told_of_source(f"No model can be made from the config.json of '{name}'"):
        with limit:
            backbone = empty_backbone(name, config, dtype=dtype, **constructor_arguments(config))
        mend_layers(backbone, config)
    backbone.language_model_of = config.get("language_model_of")
    return backbone


def _checked_config(name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    config = read_config(name)
    # A GGUF file's configuration was made from its tensors.
    if isinstance(tensors, FolderTensors):
        check_config(config, name, tensors.places)
    with told_of_source(f"The config.json of '{name}' contradicts itself"):
        return complete_config(config)


def _load_huggingface(
    name: str,
    dtype: Any = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    load_weights: bool = True,
    **kwargs: Any,
) -> keras_hub.models.CausalLM:
    if tensors is None:
        tensors = FolderTensors(source_places(name))
    config = _checked_config(name, tensors)
    check_language_model(name, config)
    backbone = _load_huggingface_backbone(name, config, tensors, dtype, load_weights)
    if "preprocessor" not in kwargs and not _has_tokenizer(name):
        raise ModelSourceError(
            f"'{name}' holds no tokenizer (tokenizer.json or tokenizer.model). Pass "
            "`preprocessor=None` to load the model alone."
        )
    given, maker = dict(kwargs), None
    # The tokenizer is mended below, and its tables for TensorFlow would be those of another.
    with tensorflow_stood_in_for("lookup"):
        if "preprocessor" not in kwargs:
            maker = tokenizer_maker(name, config["model_type"])
            tekken = mistral_preprocessor(name) if config["model_type"] == "mistral" else None
            given |= {} if tekken is None else {"preprocessor": tekken}
        task = causal_lm(name, config, backbone, maker, **given)
    if "preprocessor" not in kwargs:
        mend_tokenizer(task.preprocessor.tokenizer, name)
        append_added_tokens(task.preprocessor.tokenizer, name, text_config(config))
    return task


def _has_tokenizer(name: str) -> bool:
    files = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
    return any(preset_file(name, file) is not None for file in files)


def chat_template(source: str | os.PathLike[str]) -> str | None:
    """The Jinja chat template that a model's folder or GGUF file brings, if it brings one.

    Args:
        source: As for `load_task`.

    Returns:
        The text of chat_template.jinja, of `chat_template` in tokenizer_config.json, or of a GGUF
        file's metadata, with the one for tools where there is one by the name "tool_use"; None for
        a model without one, as KerasHub's own presets are.

    Raises:
        ModelSourceError: If there is no such source.
    """
    with _file_systems(source):
        return _own_template(resolve_source(source))


def has_template_place(source: str | os.PathLike[str]) -> bool:
    """Whether a model at this source can bring a chat template: a Hugging Face folder and a GGUF
    file can, KerasHub's presets cannot."""
    with _file_systems(source):
        name = resolve_source(source)
        return is_gguf(name) or _is_huggingface(name)


def _own_template(name: str) -> str | None:
    if is_gguf(name):
        return gguf_chat_template(name)
    if not (Path(name) / CHAT_TEMPLATE_FILE).is_file() and not _is_huggingface(name):
        return None
    if (path := preset_file(name, CHAT_TEMPLATE_FILE)) is not None:
        with_tools = preset_file(name, f"additional_chat_templates/{WITH_TOOLS}.jinja")
        paths = {PLAIN: path, WITH_TOOLS: with_tools}
        return one_template({k: read_text(p, ModelSourceError) for k, p in paths.items() if p})
    if (path := preset_file(name, "tokenizer_config.json")) is None:
        return None
    template = read_json_object(path, ModelSourceError).get("chat_template")
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        named = {str(entry.get("name")): entry.get("template") for entry in template}
        if all(isinstance(text, str) for text in named.values()):
            template = one_template(named)
    if template is not None and not isinstance(template, str):
        raise ModelSourceError(
            f"{path}: `chat_template` must be a text, or a list of named ones. Received: "
            f"{repr(template)[:80]}"
        )
    return template
