"""Saving and loading adapters in the format of Hugging Face PEFT.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. What PEFT has no field for (a
fingerprint of the base, the targets as they were given) is in the header of the latter.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerora.adapters import AdapterError, LoraConfig, adapter_configs, add_adapter
from kerora.adapters.errors import no_adapter
from kerora.adapters.host import get_adapter, is_host
from kerora.adapters.targets import select
from kerora.interchange.atomic_folder import replaced_folder
from kerora.interchange.base_tables import check_tables_of_model
from kerora.interchange.contents import PREFIX, TENSOR_FILE, AdapterContents, inspect_adapter
from kerora.interchange.factors import (
    by_layer,
    by_module,
    joined,
    layer_factors,
    layer_rank,
    module_tensors,
    parts_in_file,
)
from kerora.interchange.fingerprint import difference, fingerprint
from kerora.interchange.keras_lora import load_keras_lora
from kerora.interchange.layer_names import NamedBias, NamedLayer, named_biases, named_layers
from kerora.interchange.model_kinds import model_kind
from kerora.interchange.notes import VERSION
from kerora.interchange.other_heads import check_loadable, named_as_in_file, no_layer_for, without
from kerora.interchange.peft_config import PeftConfig, most_common, write_config
from kerora.interchange.split_modules import split_contents
from kerora.interchange.tensor_file import write_tensors
from kerora.models.huggingface_esm import TokenDropout
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE

_ROUTER = r"\.(mlp\.gate|mlp\.router|block_sparse_moe\.gate)$"


def save_adapter(model: keras.Model, folder: str | os.PathLike[str], name: str = "default") -> None:
    """Write an adapter of a model as a PEFT folder.

    The folder appears whole or not at all; one that exists is replaced. Layers are named as in
    `transformers` wherever KerasHub has a converter for the model, and by their Keras path
    elsewhere (`auto_mapping` in the config then says so). The task's chat template, where it has
    one, is written beside it as `transformers` writes it.

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
        raise no_adapter(name, adapter_configs(model))
    adapters = {id(layer): get_adapter(layer.candidate.layer, name) for layer in held}
    config: LoraConfig = next(iter(adapters.values())).config
    _check_all_saved(model, config)
    _check_expressible(held)
    _check_tables(model, held)
    modules = by_module(held)
    tensors: dict[str, np.ndarray] = {}
    for parts in modules.values():
        tensors |= module_tensors(parts[0], *joined(parts, [adapters[id(part)] for part in parts]))
    tensors.update(_bias_tensors(model, config, set(modules)))
    # A fused module holds the adapters of its layers side by side.
    fused = {module: parts for module, parts in modules.items() if parts[0].is_part}
    alpha = config.scale * config.rank
    base, source = fingerprint(model), getattr(model, "source", None)
    notes = {
        "version": VERSION,
        "fingerprint": base,
        "quantization": _quantization(layers),
        "targets": config.targets,
        "exclude": config.exclude,
        "parts": _part_numbers(layers, fused),
    }
    is_named = all(layer.weight is not None for layer in held)
    kind = model_kind(getattr(model, "backbone", model))
    peft_config = PeftConfig(
        rank=config.rank,
        alpha=alpha,
        dropout=config.dropout,
        bias=config.bias,
        rank_pattern={module: config.rank * len(parts) for module, parts in fused.items()},
        alpha_pattern={module: alpha * len(parts) for module, parts in fused.items()},
        ensure_weight_tying=any(layer.is_embedding and layer.is_tied for layer in held),
        fan_in_fan_out=any(layer.weight and layer.weight.is_transposed for layer in held),
        task_type=kind.task_type,
        left_out=kind.left_out,
        base=source and os.path.expanduser(source),
        named_by=None if is_named else str(base["backbone"]),
    )
    template = getattr(model, "chat_template", None)
    with replaced_folder(folder) as new:
        metadata = {"format": "pt", "kerora": json.dumps(notes, sort_keys=True)}
        write_tensors(new / TENSOR_FILE, tensors, metadata)
        write_config(new, peft_config, modules, [layer.module for layer in layers])
        if template is not None:
            (new / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if template is None:  # one of an earlier adapter, which the new folder took over
        (Path(folder).expanduser() / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)


def load_adapter(
    model: keras.Model,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    force: bool = False,
    leave_out: Sequence[str] = (),
) -> None:
    """Add the adapter of a PEFT folder to a model, in place, and make it active.

    Nothing needs to be enabled first: rank, alpha, targets, dropout and bias mode are read from the
    folder. Trained biases replace the model's own. Where ranks or scales differ between layers, all
    get the largest rank (filled up with zeros) and one scale; the model computes the same. The chat
    template of a folder that has one (`chat_template.jinja`) becomes the task's.

    Args:
        model: A KerasHub task or backbone, or any built `keras.Model`.
        folder: A folder that `save_adapter` or PEFT wrote, or the `.lora.h5` file of KerasHub's
            `save_lora_weights` (see `load_keras_lora`: it names no base and holds no biases).
        name: Name under which the model holds the adapter.
        force: Load onto a base that the adapter was not trained on.
        leave_out: Modules of the adapter that this model does not have, and whose weights are not
            to be loaded: `["classifier"]` for the encoder of a classifier. Default: none, and an
            adapter that has some is an error.

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
    if not force:  # first: layers that do not fit say less than that the base is another
        _check_base(model, contents)
    contents = without(model, split_contents(contents), leave_out)
    check_loadable(contents)
    layers = layers_in_file(model, contents)
    if not force:
        check_tables_of_model(contents, layers)
    biases = biases_in_file(model, contents)
    template = adapter_chat_template(contents)
    config = _lora_config(model, contents, layers)
    modules = by_module(layers)
    adapted = by_layer(layers)
    values = [layer_factors(contents, layer, modules, config) for layer in adapted]
    add_adapter(model, config, name)
    for layer, (kernel_a, kernel_b) in zip(adapted, values, strict=True):
        adapter = get_adapter(layer[0].candidate.layer, name)
        adapter.kernel_a.assign(kernel_a)
        adapter.kernel_b.assign(kernel_b)
    for bias, value in biases:
        bias.assign(value)
    if template is not None and hasattr(model, "chat_template"):
        model.chat_template = template


def adapter_chat_template(contents: AdapterContents) -> str | None:
    """The chat template that was saved with an adapter, as kerora and `transformers` save it.

    Raises:
        AdapterError: It is not text.
    """
    path = Path(contents.folder) / CHAT_TEMPLATE_FILE
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as a chat template: {error}") from error


def _holds(layer: NamedLayer, name: str) -> bool:
    host = layer.candidate.layer
    return is_host(host) and name in host.adapter_names


def _check_expressible(layers: list[NamedLayer]) -> None:
    routers = [layer.module for layer in layers if re.search(_ROUTER, layer.module)]
    if routers:
        raise AdapterError(
            f"'{routers[0]}' is a router, which `transformers` keeps as a bare parameter and no "
            "layer that PEFT could adapt. Leave routers out of `targets`; what was trained can be "
            "saved with `model.save`, or merged into the model with `kerora.merge_adapter`."
        )


def _check_tables(model: keras.Model, layers: list[NamedLayer]) -> None:
    # PEFT knows a tied table by its last name.
    kind = model_kind(getattr(model, "backbone", model))
    for layer in layers:
        if not layer.is_embedding or layer.weight is None:
            continue
        is_unknown = layer.is_tied and not layer.module.endswith("embed_tokens")
        is_scaled = isinstance(layer.candidate.layer, TokenDropout)
        is_parameter = not layer.weight.name.endswith(".weight")  # ViT's table of positions
        if is_unknown or is_scaled or is_parameter or not kind.adapts_tables:
            raise AdapterError(
                f"PEFT has no way to adapt the table '{layer.weight.name.removesuffix('.weight')}' "
                "as kerora does: with what is tied to it, without its scale, or where it is a bare "
                "parameter. Leave it out of `targets`."
            )


def _part_numbers(
    layers: list[NamedLayer], fused: dict[str, list[NamedLayer]]
) -> dict[str, list[int]]:
    everything = by_module([layer for layer in layers if layer.module in fused])
    return {
        module: [everything[module].index(part) for part in parts]
        for module, parts in fused.items()
    }


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


def _bias_tensors(
    model: keras.Model, config: LoraConfig, adapted: set[str]
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for bias in named_biases(model):
        is_adapted = bias.module in adapted
        if config.bias == "all" or (config.bias == "lora_only" and is_adapted):
            middle = ".base_layer" if is_adapted else ""
            key = f"{PREFIX}{bias.module}{middle}.bias"
            value = tensors.setdefault(key, np.zeros(bias.size, "float32"))
            value[bias.order.ravel()] = bias.values().ravel()
    return tensors


def _quantization(layers: list[NamedLayer]) -> str | None:
    modes = Counter(getattr(layer.candidate.layer, "quantization_mode", None) for layer in layers)
    return next((mode for mode, _ in modes.most_common() if mode is not None), None)


def layers_in_file(model: keras.Model, contents: AdapterContents) -> list[NamedLayer]:
    """The layers of a model that an adapter's file holds factors for.

    Raises:
        AdapterError: If the model has no layer for some of them.
    """
    layers = named_as_in_file(named_layers(model), model, contents)
    found = [layer for layer in layers if layer.module in contents.factors]
    missing = set(contents.factors) - {layer.module for layer in layers}
    for table in found:
        if table.is_embedding and table.is_tied and table.weight is not None:
            _check_tied(contents, table)
            missing.discard(table.head or "")
    if missing:
        example = layers[0].module if layers else "none"
        raise no_layer_for(contents, sorted(missing), example)
    _check_tables(model, found)
    return parts_in_file(contents, found)


def _check_tied(contents: AdapterContents, table: NamedLayer) -> None:
    # A kerora adapter on a tied table changes lookup and logits alike; PEFT's only where asked to.
    file = contents.folder / TENSOR_FILE
    if not contents.config.ensure_weight_tying:
        raise AdapterError(
            f"{file} adapts '{table.module}' of a model with tied embeddings, but without "
            "`ensure_weight_tying`: its logits would stay the base's. kerora adapts both or none."
        )
    head = contents.factors.get(table.head or "")
    a, b = contents.factors[table.module]
    if head is not None and not (
        head[0].shape == b.T.shape and np.array_equal(head[0], b.T) and np.array_equal(head[1], a.T)
    ):
        raise AdapterError(
            f"{file}: the factors of '{table.head}' and '{table.module}' differ, though the model "
            "ties the two."
        )


def _check_base(model: keras.Model, contents: AdapterContents) -> None:
    saved = contents.kerora.get("fingerprint")
    found = difference(model, saved) if saved else None
    if found:
        name = f" ('{contents.config.base}')" if contents.config.base else ""
        raise AdapterError(
            f"The adapter in '{contents.folder}' was trained on another base{name} than this "
            f"model: {found}. Load that base (in Python, `force=True` loads it all the same)."
        )


def biases_in_file(
    model: keras.Model, contents: AdapterContents
) -> list[tuple[NamedBias, np.ndarray]]:
    """The biases of a model that an adapter's file holds, with their values there.

    Raises:
        AdapterError: If the model has no place for one.
    """
    if not contents.biases:
        return []
    file = contents.folder / TENSOR_FILE
    result = []
    missing = dict(contents.biases)
    for bias in named_as_in_file(named_biases(model), model, contents):
        value = contents.biases.get(bias.module)
        if value is None:
            continue
        missing.pop(bias.module, None)
        if value.shape != (bias.size,):
            raise AdapterError(
                f"{file}: the bias of '{bias.module}' must have shape ({bias.size},). "
                f"Received: {value.shape}"
            )
        result.append((bias, value[bias.order]))
    if missing:
        raise AdapterError(f"{file}: this model has no bias in '{next(iter(missing))}'.")
    return result


def _lora_config(
    model: keras.Model, contents: AdapterContents, layers: list[NamedLayer]
) -> LoraConfig:
    read = contents.config
    rank = max(layer_rank(contents, layer) for layer in by_layer(layers))
    scale = most_common(read.scale_of(layer.module) for layer in layers)
    wanted = {id(layer.candidate.layer) for layer in layers}
    config = LoraConfig(
        rank=rank,
        alpha=scale * rank,
        dropout=read.dropout,
        targets=tuple(dict.fromkeys(layer.candidate.path for layer in layers)),
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
