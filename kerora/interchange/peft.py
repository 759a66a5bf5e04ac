"""Saving and loading adapters in the format of Hugging Face PEFT.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. What PEFT has no field for (a
fingerprint of the base, the targets as they were given) is in the header of the latter.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import keras
import numpy as np

from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.adapters.factorization import (
    Factorization,
    factorize,
    layer_equation,
    layer_kernel_shape,
)
from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.targets import select
from kerora.interchange.atomic_folder import replaced_folder
from kerora.interchange.contents import PREFIX, TENSOR_FILE, AdapterContents, inspect_adapter
from kerora.interchange.fingerprint import difference, fingerprint
from kerora.interchange.keras_lora import load_keras_lora
from kerora.interchange.layer_names import (
    NamedLayer,
    from_peft,
    matrix_shapes,
    named_biases,
    named_layers,
    to_peft,
)
from kerora.interchange.peft_config import PeftConfig, most_common, write_config
from kerora.interchange.tensor_file import write_tensors

_TIED_HEAD = "lm_head"


def save_adapter(model: keras.Model, folder: str | os.PathLike[str], name: str = "default") -> None:
    """Write an adapter of a model as a PEFT folder.

    The folder appears whole or not at all; one that exists is replaced. Layers are named as in
    `transformers` wherever KerasHub has a converter for the model, and by their Keras path
    elsewhere (`auto_mapping` in the config then says so).

    Args:
        model: A KerasHub task or backbone, or any `keras.Model`, that holds the adapter.
        folder: Where to write.
        name: Name of the adapter.

    Raises:
        AdapterError: If the model holds no such adapter, or trains weights that are no part of one
            and would be lost.
        OSError: If the folder cannot be written; what was there before is then untouched.

    Example:
    ```python
    model.backbone.enable_lora(4)
    save_adapter(model, "my_adapter")
    peft.PeftModel.from_pretrained(transformers_model, "my_adapter")
    ```
    """
    layers = named_layers(model)
    held = [layer for layer in layers if _holds(layer, name)]
    if not held:
        raise AdapterError(
            f"No adapter named {name!r}. This model holds: {list(adapter_configs(model))}"
        )
    adapters = {layer.module: get_adapter(layer.candidate.layer, name) for layer in held}
    if len(adapters) < len(held):
        raise AdapterError("Two adapted layers have the same name, so a file cannot hold both.")
    config: LoraConfig = next(iter(adapters.values())).config
    _check_all_saved(model, config)
    tensors: dict[str, np.ndarray] = {}
    for layer in held:
        tensors.update(_factor_tensors(layer, *to_peft(layer, adapters[layer.module])))
    tensors.update(_bias_tensors(model, config, set(adapters)))
    base = fingerprint(model)
    notes = {
        "version": 1,
        "fingerprint": base,
        "quantization": _quantization(layers),
        "targets": config.targets,
        "exclude": config.exclude,
    }
    is_named = all(layer.weight is not None for layer in held)
    peft_config = PeftConfig(
        rank=config.rank,
        alpha=config.scale * config.rank,
        dropout=config.dropout,
        bias=config.bias,
        ensure_weight_tying=any(layer.is_embedding and layer.is_tied for layer in held),
        base=getattr(model, "source", None),
        named_by=None if is_named else str(base["backbone"]),
    )
    with replaced_folder(folder) as new:
        metadata = {"format": "pt", "kerora": json.dumps(notes, sort_keys=True)}
        write_tensors(new / TENSOR_FILE, tensors, metadata)
        write_config(new, peft_config, adapters, [layer.module for layer in layers])


def load_adapter(
    model: keras.Model,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    force: bool = False,
) -> None:
    """Add the adapter of a PEFT folder to a model, in place, and make it active.

    Nothing needs to be enabled first: rank, alpha, targets, dropout and bias mode are read from the
    folder. Trained biases replace the model's own. Where ranks or scales differ between layers, all
    get the largest rank (filled up with zeros) and one scale; the model computes the same.

    Args:
        model: A KerasHub task or backbone, or any built `keras.Model`.
        folder: A folder that `save_adapter` or PEFT wrote, or the `.lora.h5` file of KerasHub's
            `save_lora_weights` (see `load_keras_lora`: it names no base and holds no biases).
        name: Name under which the model holds the adapter.
        force: Load onto a base that the adapter was not trained on.

    Raises:
        AdapterError: If a file is missing or damaged, the adapter uses a feature that kerora does
            not have, does not fit the model, or was trained on another base. The model is then as
            it was.

    Example:
    ```python
    model = kerora.from_preset("tiny_gemma")
    load_adapter(model, "my_adapter")
    ```
    """
    if os.fspath(folder).endswith(".h5"):
        load_keras_lora(model, folder, name)
        return
    contents = inspect_adapter(folder)
    check_loadable(contents)
    layers = layers_in_file(model, contents)
    _check_base(model, contents, force)
    biases = biases_in_file(model, contents)
    config = _lora_config(model, contents, layers)
    values = {
        layer.module: factors_in_file(contents, layer, config.rank, config.scale)
        for layer in layers
    }
    add_adapter(model, config, name)
    for layer in layers:
        adapter = get_adapter(layer.candidate.layer, name)
        for variable, value in zip(
            (adapter.kernel_a, adapter.kernel_b), values[layer.module], strict=True
        ):
            variable.assign(value)
    for variable, value in biases:
        variable.assign(value)


def _holds(layer: NamedLayer, name: str) -> bool:
    host = layer.candidate.layer
    return is_host(host) and name in host.adapter_names


def _check_all_saved(model: keras.Model, config: LoraConfig) -> None:
    known = {
        id(variable)
        for layer in named_layers(model)
        if is_host(layer.candidate.layer)
        for name in layer.candidate.layer.adapter_names
        for variable in get_adapter(layer.candidate.layer, name).weights
    }
    lost = [
        variable.path
        for variable in model.trainable_variables
        if id(variable) not in known and not (variable.name == "bias" and config.bias != "none")
    ]
    if lost:
        raise AdapterError(
            f"{len(lost)} weights train beside the adapter, and an adapter folder cannot hold "
            f"them: {', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}. Freeze them, or save "
            "the whole model with `save_to_preset`."
        )


def _factor_tensors(layer: NamedLayer, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    key = PREFIX + layer.module
    if not layer.is_embedding:
        return {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    tensors = {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
    if layer.is_tied and layer.weight is not None:
        # PEFT keeps the tied head's factors under a name of their own.
        head = PREFIX + _TIED_HEAD
        tensors |= {f"{head}.lora_A.weight": b.T, f"{head}.lora_B.weight": a.T}
    return tensors


def _bias_tensors(
    model: keras.Model, config: LoraConfig, adapted: set[str]
) -> dict[str, np.ndarray]:
    tensors = {}
    for bias in named_biases(model):
        is_adapted = bias.module in adapted
        if config.bias == "all" or (config.bias == "lora_only" and is_adapted):
            value = np.empty(bias.order.size, "float32")
            value[bias.order.ravel()] = keras.ops.convert_to_numpy(
                keras.ops.cast(bias.variable, "float32")
            ).ravel()
            middle = ".base_layer" if is_adapted else ""
            tensors[f"{PREFIX}{bias.module}{middle}.bias"] = value
    return tensors


def _quantization(layers: list[NamedLayer]) -> str | None:
    modes = Counter(getattr(layer.candidate.layer, "quantization_mode", None) for layer in layers)
    return next((mode for mode, _ in modes.most_common() if mode is not None), None)


def check_loadable(contents: AdapterContents) -> None:
    """Refuse an adapter that fits Hugging Face folders alone.

    Raises:
        AdapterError: If it is one.
    """
    for name in ("fan_in_fan_out", "modules_to_save"):
        if value := getattr(contents.config, name):
            raise AdapterError(
                f"{contents.folder}: kerora cannot load an adapter with `{name}`. Received: "
                f"{name}={value!r}. Merge it into the base's folder: `kerora merge`."
            )


def layers_in_file(model: keras.Model, contents: AdapterContents) -> list[NamedLayer]:
    """The layers of a model that an adapter's file holds factors for.

    Raises:
        AdapterError: If the model has no layer for some of them.
    """
    layers = {layer.module: layer for layer in named_layers(model)}
    found = [layer for module, layer in layers.items() if module in contents.factors]
    tied = [layer for layer in found if layer.is_embedding and layer.is_tied]
    missing = set(contents.factors) - set(layers)
    if tied and layers[tied[0].module].weight is not None:
        _check_tied(contents, tied[0])
        missing.discard(_TIED_HEAD)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        example = next(iter(layers), "none")
        raise AdapterError(
            f"{contents.folder / TENSOR_FILE}: this model has no layer for {len(missing)} of the "
            f"{len(contents.factors)} adapted modules: {some}{', …' if len(missing) > 3 else ''}. "
            f"Its own are named like '{example}'."
        )
    return found


def _check_tied(contents: AdapterContents, table: NamedLayer) -> None:
    # A kerora adapter on a tied table changes lookup and logits alike; PEFT's only where asked to.
    file = contents.folder / TENSOR_FILE
    if not contents.config.ensure_weight_tying:
        raise AdapterError(
            f"{file} adapts '{table.module}' of a model with tied embeddings, but without "
            "`ensure_weight_tying`: its logits would stay the base's. kerora adapts both or none."
        )
    head = contents.factors.get(_TIED_HEAD)
    a, b = contents.factors[table.module]
    if head is not None and not (
        head[0].shape == b.T.shape and np.array_equal(head[0], b.T) and np.array_equal(head[1], a.T)
    ):
        raise AdapterError(
            f"{file}: the factors of '{_TIED_HEAD}' and '{table.module}' differ, though the model "
            "ties the two."
        )


def _check_base(model: keras.Model, contents: AdapterContents, force: bool) -> None:
    saved = contents.kerora.get("fingerprint")
    found = difference(model, saved) if saved and not force else None
    if found:
        name = f" ('{contents.config.base}')" if contents.config.base else ""
        raise AdapterError(
            f"The adapter in '{contents.folder}' was trained on another base{name} than this "
            f"model: {found}. Load that base, or pass `force=True`."
        )


def biases_in_file(
    model: keras.Model, contents: AdapterContents
) -> list[tuple[keras.Variable, np.ndarray]]:
    """The biases of a model that an adapter's file holds, with their values there.

    Raises:
        AdapterError: If the model has no place for one.
    """
    if not contents.biases:
        return []
    file = contents.folder / TENSOR_FILE
    known = {bias.module: bias for bias in named_biases(model)}
    result = []
    for module, value in contents.biases.items():
        bias = known.get(module)
        if bias is None:
            raise AdapterError(f"{file}: this model has no bias in '{module}'.")
        if value.shape != (bias.order.size,):
            raise AdapterError(
                f"{file}: the bias of '{module}' must have shape ({bias.order.size},). "
                f"Received: {value.shape}"
            )
        result.append((bias.variable, value[bias.order].reshape(bias.variable.shape)))
    return result


def _lora_config(
    model: keras.Model, contents: AdapterContents, layers: list[NamedLayer]
) -> LoraConfig:
    read = contents.config
    rank = max(read.rank_of(layer.module) for layer in layers)
    scale = most_common(read.scale_of(layer.module) for layer in layers)
    wanted = {id(layer.candidate.layer) for layer in layers}
    config = LoraConfig(
        rank=rank,
        alpha=scale * rank,
        dropout=read.dropout,
        targets=tuple(layer.candidate.path for layer in layers),
        bias=read.bias,
    )
    notes = contents.kerora
    given: dict[str, Any] = {"targets": notes.get("targets"), "exclude": notes.get("exclude")}
    if "targets" in notes and _selected(model, **given) == wanted:
        return LoraConfig(
            rank=rank, alpha=scale * rank, dropout=read.dropout, bias=read.bias, **given
        )
    if _selected(model, config.targets, None) != wanted:
        raise AdapterError(
            f"The layers of the adapter in '{contents.folder}' cannot be told apart by their paths."
        )
    return config


def _selected(model: keras.Model, targets: Any, exclude: Any) -> set[int]:
    try:
        return {id(candidate.layer) for candidate in select(model, targets, exclude)}
    except AdapterError:
        return set()


def factors_in_file(
    contents: AdapterContents, layer: NamedLayer, given_rank: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's A and B in its own axes, filled up to `given_rank`, for a delta `scale · A·B`.

    Raises:
        AdapterError: If they do not fit the layer.
    """
    file, module = contents.folder / TENSOR_FILE, layer.module
    rank = contents.config.rank_of(module)
    factorization = factorization_of(layer, rank)
    for letter, matrix, expected in zip(
        "AB", contents.factors[module], matrix_shapes(layer, factorization, rank), strict=True
    ):
        if matrix.shape != expected:
            raise AdapterError(
                f"{file}: factor {letter} of '{module}' must have shape {expected} (rank {rank}). "
                f"Received: {matrix.shape}"
            )
        if not np.isfinite(matrix).all():
            raise AdapterError(f"{file}: factor {letter} of '{module}' holds NaN or infinity.")
    a, b = contents.factors[module]
    missing = given_rank - rank
    if missing:
        a = np.concatenate([a, np.zeros((*a.shape[:-2], missing, a.shape[-1]), a.dtype)], -2)
        b = np.concatenate([b, np.zeros((*b.shape[:-1], missing), b.dtype)], -1)
        factorization = factorization_of(layer, given_rank)
    ratio = contents.config.scale_of(module) / scale
    return from_peft(layer, factorization, a, b if ratio == 1 else b * np.float32(ratio))


def factorization_of(layer: NamedLayer, rank: int) -> Factorization | None:
    """How a layer's kernel splits; None for an embedding."""
    if layer.is_embedding:
        return None
    host = layer.candidate.layer
    return factorize(layer_equation(host), layer_kernel_shape(host), rank)
