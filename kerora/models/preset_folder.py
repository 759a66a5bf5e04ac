"""A KerasHub preset from a stranger: what its JSON files may name, and where its weights lie.

The files are serialised Keras objects, and Keras imports the class that they name. Only layers that
KerasHub or the running program registered are built, and of Keras itself what configures layers:
nothing that holds code (`Lambda`), reads other files, or unpickles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import keras_hub

from kerora.json_file import read_json_object
from kerora.models.converters import preset_file
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.huggingface_folder import check_inside
from kerora.models.weight_limit import weights_limited

SINGLE_FILE = "model.weights.h5"
INDEX_FILE = "model.weights.json"
TASK_FILE = "task.weights.h5"
_OBJECT_FILES = (
    *("config.json", "task.json", "preprocessor.json", "tokenizer.json"),
    *("image_converter.json", "audio_converter.json", "video_converter.json"),
)
_KERAS_PARTS = (
    *("dtype_policies", "initializers", "regularizers", "constraints", "activations"),
    "quantizers",
)
_KERAS_CLASSES = {
    "keras": ("DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "QuantizedDTypePolicy"),
    "keras.layers": ("Dense", "EinsumDense"),  # a BLIP-2's projection is one
}
# Given as text these are names of files anywhere on the machine.
_FILE_NAMES = ("proto", "vocabulary", "merges")
_NAMED_CLASS = ("class_name", "registered_name")


@contextmanager
def preset_checked(source: str, *, has_weights: bool = True) -> Iterator[None]:
    """The context in which KerasHub may load a preset.

    Args:
        source: The preset's folder or handle.
        has_weights: Whether its weights are to be there, and bound the model's size.

    Raises:
        ModelSourceError: If its files name a class that no preset needs, or files elsewhere; if
            they describe a model larger than its weights; or if KerasHub cannot load it.
    """
    _check_classes(source)
    limit = weights_limited(_most_values(source), source) if has_weights else nullcontext()
    with told_of_source(f"KerasHub cannot load the preset '{source}'"), limit:
        yield


def _most_values(source: str) -> int:
    if preset_file(source, SINGLE_FILE) is None and (index := preset_file(source, INDEX_FILE)):
        for name in _names_in_index(Path(index)):
            preset_file(source, name)  # fetched, where the source is a handle
    config = preset_file(source, "config.json")
    files = weight_files(Path(config).parent) if config is not None else []
    # A value takes a byte at least: four-bit weights are variables of bytes.
    return sum(file.stat().st_size for file in files)


def _check_classes(source: str) -> None:
    for name in _OBJECT_FILES:
        path = preset_file(source, name)
        if path is None:
            continue
        if os.path.isdir(source):
            check_inside(Path(source), Path(path))
        value = read_json_object(path, ModelSourceError)
        kind = _registered(value)
        if kind is None or not isinstance(value.get("config"), dict):
            raise ModelSourceError(
                f"'{path}' describes no object of KerasHub. Received: "
                f"registered_name={value.get('registered_name')!r:.80}"
            )
        if name == "config.json" and not issubclass(kind, keras_hub.models.Backbone):
            raise ModelSourceError(
                f"'{path}' must describe a backbone. Received: {kind.__name__!r}"
            )
        _check_objects(value, path)


def weight_files(folder: Path) -> list[Path]:
    """The HDF5 files that hold the weights of a preset.

    Raises:
        ModelSourceError: If there are none, the index is damaged, or names a file that is missing
            or lies elsewhere.
    """
    if (folder / SINGLE_FILE).exists():
        names = {SINGLE_FILE}
    elif (folder / INDEX_FILE).exists():
        names = _names_in_index(folder / INDEX_FILE)
    else:
        raise ModelSourceError(
            f"The preset '{folder}' holds neither {SINGLE_FILE} nor {INDEX_FILE}."
        )
    if (folder / TASK_FILE).exists():
        names.add(TASK_FILE)
    for name in names:
        if not (folder / name).is_file():
            raise ModelSourceError(f"{folder / INDEX_FILE} names '{name}', which is missing.")
        check_inside(folder, folder / name)
    return [folder / name for name in sorted(names)]


def _names_in_index(index: Path) -> set[str]:
    check_inside(index.parent, index)
    entries = read_json_object(index, ModelSourceError).get("weight_map")
    if not isinstance(entries, dict):
        raise ModelSourceError(f"{index} is damaged: it has no object `weight_map`.")
    named = [entry if isinstance(entry, list) else [entry] for entry in entries.values()]
    names = [name for entry in named for name in entry]
    for name in names:
        is_plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not is_plain or not name.endswith(".weights.h5"):
            raise ModelSourceError(
                f"{index} must name .weights.h5 files beside it. Received: {str(name)[:80]!r}"
            )
    return set(names)


def _check_objects(value: Any, path: str) -> None:
    if isinstance(value, list):
        for part in value:
            _check_objects(part, path)
    if not isinstance(value, dict):
        return
    if any(value.get(key) is not None for key in _NAMED_CLASS):
        _check_class(value, path)
    for name in _FILE_NAMES:
        if isinstance(value.get(name), str):
            raise ModelSourceError(
                f"'{path}' names a file of its own as `{name}`; a preset's vocabulary lies in its "
                f"folder `assets`. Received: {value[name][:80]!r}"
            )
    for part in value.values():
        _check_objects(part, path)


def _check_class(value: dict[str, Any], path: str) -> None:
    module, name = value.get("module"), value.get("class_name")
    # These say how Keras reads the rest: a lambda, a type of TensorFlow's, any function.
    is_special = str(name).startswith("__") or name == "function"
    if not is_special and _registered(value) is not None:
        return
    if _is_harmless(module, name, value.get("config")):
        return
    raise ModelSourceError(
        f"'{path}' names the class {str(module)[:80]!r} {str(name)[:80]!r}, which is not built "
        "from a preset. Built are layers that KerasHub registers, and Keras' dense layers, "
        "initializers, regularizers, constraints, activations, quantizers and dtype policies. A "
        "class of your own must be registered with `keras.saving.register_keras_serializable` "
        "before."
    )


def _registered(value: dict[str, Any]) -> type | None:
    name = value.get("registered_name")
    found = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    return found if isinstance(found, type) else None


def _is_harmless(module: object, name: object, config: object) -> bool:
    if not isinstance(name, str) or not isinstance(module, str):
        return False
    if name == "function":
        return module == "builtins" and hasattr(keras.activations, str(config))
    if module in _KERAS_CLASSES:
        return name in _KERAS_CLASSES[module]
    return any(
        module == f"keras.{part}" and hasattr(getattr(keras, part), name) for part in _KERAS_PARTS
    )
