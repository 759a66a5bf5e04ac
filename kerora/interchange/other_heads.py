"""Adapters that were trained below another head than the model has.

`transformers` names the layers of one model differently below different heads: an encoder's
`encoder.layer.0` is `bert.encoder.layer.0` in `BertForSequenceClassification`, and the adapter's
file holds the classifier too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import keras

from kerora.adapters import AdapterError
from kerora.interchange.contents import TENSOR_FILE, AdapterContents
from kerora.interchange.huggingface_names import huggingface_weights
from kerora.interchange.layer_names import NamedBias, NamedLayer, named_layers
from kerora.interchange.model_kinds import ModelKind, model_kind, name_in_model

_Named = TypeVar("_Named", NamedLayer, NamedBias)


def named_as_in_file(
    named: list[_Named], model: keras.Model, contents: AdapterContents
) -> list[_Named]:
    """Layers or biases of a model under the names that an adapter's file has for them."""
    name_in_file = _naming(model, contents)
    return [dataclasses.replace(item, module=name_in_file(item.module)) for item in named]


def _naming(model: keras.Model, contents: AdapterContents) -> Callable[[str], str]:
    kind: ModelKind = model_kind(getattr(model, "backbone", model))
    own = [layer.module for layer in named_layers(model) if layer.weight is not None]
    held = (*contents.factors, *contents.biases)
    # Older versions of `transformers` name a model's layers as its files do.
    in_file = {name_in_model(name, kind.renamed): name for name in held}

    def renamed(module: str, prefix: str) -> str:
        is_inner = module.startswith(kind.prefix)
        name = prefix + module.removeprefix(kind.prefix) if is_inner else module
        return in_file.get(name, name)

    def count(prefix: str) -> int:
        return sum(renamed(module, prefix) in contents.factors for module in own)

    # The model's own names come first among those that fit equally well.
    best = max((kind.prefix, *kind.other_prefixes), key=count)
    return functools.partial(renamed, prefix=best)


def without(
    model: keras.Model, contents: AdapterContents, leave_out: Sequence[str]
) -> AdapterContents:
    """An adapter without some modules that the model does not have.

    Args:
        model: The model that the adapter is to be loaded on.
        contents: The adapter.
        leave_out: Names of modules, whole (`"bert.classifier"`) or in part (`"classifier"`).

    Raises:
        AdapterError: If the adapter has no such module, or the model has it.
    """
    if not leave_out:
        return contents
    file = contents.folder / TENSOR_FILE
    saved = contents.config.modules_to_save
    weights = huggingface_weights(getattr(model, "backbone", model))
    name_in_file = _naming(model, contents)
    own = [name_in_file(weight.module) for weight in itertools.chain(*weights.values())]
    held = [*contents.factors, *contents.biases, *contents.whole, *saved]
    for name in leave_out:
        if not any(_is_within(module, [name]) for module in held):
            raise AdapterError(f"{file} holds no module '{name}' that could be left out.")
        if any(_is_within(module, [name]) for module in own):
            raise AdapterError(
                f"'{name}' is a part of this model, which would give other answers than were "
                "trained without what the adapter holds for it. Only what the model does not have "
                "can be left out."
            )
    factors = {k: v for k, v in contents.factors.items() if not _is_within(k, leave_out)}
    if not factors:
        raise AdapterError(f"Without {list(leave_out)!r} nothing is left of {file}.")
    return dataclasses.replace(
        contents,
        config=dataclasses.replace(
            contents.config,
            modules_to_save=tuple(name for name in saved if not _is_within(name, leave_out)),
        ),
        factors=factors,
        biases={k: v for k, v in contents.biases.items() if not _is_within(k, leave_out)},
        whole=frozenset(name for name in contents.whole if not _is_within(name, leave_out)),
    )


def no_layer_for(contents: AdapterContents, missing: list[str], own: str) -> AdapterError:
    """The error that a model lacks modules which an adapter holds factors for.

    Args:
        contents: The adapter.
        missing: Names of the modules.
        own: Name of a module that the model has.
    """
    hint = f" The adapter's base is '{contents.config.base}'." if contents.config.base else ""
    if len(missing) < len(contents.factors):
        hint += (
            " What this model does not have at all, such as a vision tower, can be left out in "
            "Python: `load_adapter(…, leave_out=[…])`."
        )
    some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    return AdapterError(
        f"{contents.folder / TENSOR_FILE}: this model has no layer for {len(missing)} of the "
        f"{len(contents.factors)} adapted modules: {some}. Its own are named like '{own}'.{hint}"
    )


def check_loadable(contents: AdapterContents) -> None:
    """Refuse an adapter that holds modules which were trained whole.

    Raises:
        AdapterError: If it is one.
    """
    if modules := contents.config.modules_to_save:
        raise AdapterError(
            f"{contents.folder}: kerora cannot load an adapter with `modules_to_save`. Received: "
            f"{modules!r}. Merge it into the base's folder (`kerora merge`); or, if they are a "
            f"head that this model does not have, load it with `leave_out={list(modules)!r}`."
        )


def _is_within(module: str, names: Sequence[str]) -> bool:
    return any(f".{name}." in f".{module}." for name in names)
