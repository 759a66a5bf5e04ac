"""The life of an adapter in a model: add, activate, disable, merge, remove."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import keras
from keras import ops

from kerora.adapters.compiled import compiled_functions_set_aside, forget_compiled_functions
from kerora.adapters.config import LoraConfig
from kerora.adapters.errors import AdapterError, no_adapter
from kerora.adapters.gemma4_feedforward import call_feedforward_layers, is_gemma4_block
from kerora.adapters.host import attach, become_base, become_host, detach, get_adapter, is_host
from kerora.adapters.int8_head import is_int8_head
from kerora.adapters.lora import EmbeddingLora
from kerora.adapters.targets import Candidate, candidates, sublayers

DEFAULT_NAME = "default"


def add_adapter_to_layers(
    model: keras.Model, config: LoraConfig, name: str, targets: list[Candidate]
) -> None:
    """Attach an adapter to the layers `targets` of a model, and freeze the rest."""
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise AdapterError(
            f"An adapter's name may hold letters, digits and underscores. Received: {name!r}"
        )
    held = adapter_configs(model)
    if name in held:
        raise AdapterError(
            f"The model already holds an adapter named '{name}'. Name all targets in one call, "
            "give the new adapter another `name`, or call "
            f"`kerora.remove_adapter(model, '{name}')` first."
        )
    attached: list[Candidate] = []
    try:
        for target in targets:
            attach(target.layer, config, name, target.path)
            attached.append(target)
    except BaseException:
        for target in attached:
            detach(target.layer, name)
        raise
    for layer, _ in sublayers(model):
        if is_int8_head(layer):
            become_host(layer)
        if is_gemma4_block(layer):
            call_feedforward_layers()
    if not held:
        _freeze(model)
    _set_bias_trainable(model, config, [target.layer for target in attached])
    forget_compiled_functions(model)


def adapted_layers(model: keras.layers.Layer, name: str = DEFAULT_NAME) -> list[Candidate]:
    """The layers that hold the adapter `name`, in a fixed order."""
    return [c for c in candidates(model) if is_host(c.layer) and name in c.layer.adapter_names]


def adapter_configs(model: keras.layers.Layer) -> dict[str, LoraConfig]:
    """The adapters of a model by name, in the order they were added."""
    return {
        name: get_adapter(c.layer, name).config
        for c in candidates(model)
        if is_host(c.layer)
        for name in c.layer.adapter_names
    }


def set_active_adapters(model: keras.Model, names: tuple[str, ...] | list[str]) -> None:
    """Let just the adapters `names` take part in the forward pass and in training.

    An empty list leaves the base alone (but biases that an adapter trained keep their values). An
    optimizer that was built loses its state, because other variables train from now on.

    Raises:
        AdapterError: For a name that the model does not hold.
    """
    known = adapter_configs(model)
    for name in names:
        if name not in known:
            raise no_adapter(name, known)
    for host in _hosts(model):
        host.active_adapters = tuple(n for n in host.adapter_names if n in names)
        for name in host.adapter_names:
            for variable in get_adapter(host, name).weights:
                variable.trainable = name in names
    forget_compiled_functions(model)


@contextlib.contextmanager
def disabled_adapters(model: keras.Model) -> Iterator[None]:
    """Within this context the model is its base, for inference (biases that were trained stay).

    It may be entered while `fit` runs, in a callback.
    """
    hosts = _hosts(model)
    before = [host.active_adapters for host in hosts]
    with compiled_functions_set_aside(model):
        for host in hosts:
            host.active_adapters = ()
        try:
            yield
        finally:
            for host, names in zip(hosts, before, strict=True):
                host.active_adapters = names


def remove_adapter(model: keras.Model, name: str = DEFAULT_NAME) -> None:
    """Take the adapter `name` out of the model. The base stays frozen (`model.trainable = True`).

    Raises:
        AdapterError: For a name that the model does not hold.
    """
    for target in _held(model, name):
        detach(target.layer, name)
    _after_removal(model)


def merge_adapter(model: keras.Model, name: str = DEFAULT_NAME) -> None:
    """Add the adapter's delta to the kernels that it adapts, and remove it.

    The sum is taken in float32 and rounded once to the kernel's type.

    Raises:
        AdapterError: For an unknown name, or a quantised kernel, which cannot hold the sum.
    """
    targets = _held(model, name)
    for target in targets:
        if target.layer.quantization_mode is not None:
            raise AdapterError(
                f"Layer '{target.path}' is quantised ({target.layer.quantization_mode}); merging "
                "would round the adapter away. Merge it into the unquantised base instead."
            )
    for target in targets:
        adapter = get_adapter(target.layer, name)
        is_table = isinstance(adapter, EmbeddingLora)
        kernel = target.layer._embeddings if is_table else target.layer._kernel
        kernel.assign(ops.cast(ops.cast(kernel, "float32") + adapter.delta(), kernel.dtype))
        detach(target.layer, name)
    _after_removal(model)


def _held(model: keras.Model, name: str) -> list[Candidate]:
    held = adapted_layers(model, name)
    if not held:
        raise no_adapter(name, adapter_configs(model))
    return held


def _hosts(model: keras.Model) -> list[keras.layers.Layer]:
    return [c.layer for c in candidates(model) if is_host(c.layer)]


def _after_removal(model: keras.Model) -> None:
    if not _hosts(model):
        for layer, _ in sublayers(model):
            become_base(layer)
    forget_compiled_functions(model)


def _freeze(model: keras.Model) -> None:
    # Layers stay trainable and variables are frozen one by one: a layer that is not trainable
    # would hide the adapters below it.
    model.trainable = True
    adapter_variables = {
        id(variable)
        for host in _hosts(model)
        for name in host.adapter_names
        for variable in get_adapter(host, name).weights
    }
    for variable in model.weights:
        if id(variable) not in adapter_variables:
            variable.trainable = False
    for layer, _ in sublayers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            # Its moving statistics would go on changing with every batch.
            layer.trainable = False


def _set_bias_trainable(
    model: keras.Model, config: LoraConfig, layers: list[keras.layers.Layer]
) -> None:
    if config.bias == "none":
        return
    for variable in model.weights if config.bias == "all" else _own_weights(layers):
        if variable.name == "bias":
            variable.trainable = True


def _own_weights(layers: list[keras.layers.Layer]) -> list[keras.Variable]:
    return [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
