"""Adapting one layer in place.

The host layer keeps its identity, its path and its untouched base weights. Its class becomes a
subclass that adds the active adapters to the layer's own output, and each adapter is tracked as a
child layer, so that saving, optimizers and `summary()` see ordinary variables.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterator

import keras

from kerora.adapters.config import LoraConfig
from kerora.adapters.errors import AdapterError
from kerora.adapters.factorization import layer_equation, layer_kernel_shape
from kerora.adapters.lora import EmbeddingLora, LinearLora, LoraAdapter

HOST_TYPES = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
_PREFIX = "adapter_"


class _Host(keras.layers.Layer):
    """What every adapted layer has beside its own class.

    Attributes:
        adapter_names: Names of the adapters it holds, in the order they were added.
        active_adapters: Names of those that take part in the forward pass.
    """

    adapter_names: tuple[str, ...]
    active_adapters: tuple[str, ...]

    def quantize(self, mode=None, *args, **kwargs):
        raise AdapterError(
            f"Layer '{self.path}' holds an adapter and can no longer be quantized. "
            f"Received: mode={mode!r}. Quantize the model first, then add the adapter."
        )

    def _call_adapted(self, base_call, inputs, *args, **kwargs):
        raise NotImplementedError

    def call(self, *args, **kwargs):
        return self._call_adapted(super().call, *args, **kwargs)

    def quantized_call(self, *args, **kwargs):
        return self._call_adapted(super().quantized_call, *args, **kwargs)


class _LinearHost(_Host):
    def _call_adapted(self, base_call, inputs, *args, **kwargs):
        # The delta belongs before the activation, which the layer's own call ends with.
        with _attribute_set_aside(self, "activation") as activation:
            outputs = base_call(inputs, *args, **kwargs)
        for name in self.active_adapters:
            outputs = outputs + keras.ops.cast(get_adapter(self, name)(inputs), outputs.dtype)
        return outputs if activation is None else activation(outputs)


class _EmbeddingHost(_Host):
    tie_weights: bool

    def _call_adapted(self, base_call, inputs, *args, reverse=False, **kwargs):
        if not reverse:
            outputs = base_call(inputs, *args, **kwargs)
            for name in self.active_adapters:
                outputs = outputs + keras.ops.cast(get_adapter(self, name)(inputs), outputs.dtype)
            return outputs
        if not self.tie_weights:
            return base_call(inputs, *args, reverse=True, **kwargs)
        # The delta belongs before the soft cap, which the layer's own call ends with.
        with _attribute_set_aside(self, "logit_soft_cap") as cap:
            logits = base_call(inputs, *args, reverse=True, **kwargs)
        for name in self.active_adapters:
            delta = get_adapter(self, name)(inputs, reverse=True)
            logits = logits + keras.ops.cast(delta, logits.dtype)
        return logits if cap is None else keras.ops.tanh(logits / cap) * cap


@contextlib.contextmanager
def _attribute_set_aside(layer: keras.layers.Layer, name: str) -> Iterator:
    value = getattr(layer, name, None)
    if value is None:
        yield None
        return
    setattr(layer, name, None)
    try:
        yield value
    finally:
        setattr(layer, name, value)


@functools.cache
def _host_class(base: type) -> type[_Host]:
    mixin = _EmbeddingHost if issubclass(base, keras.layers.Embedding) else _LinearHost
    # Under the base's own name and module the layer serialises as what it was: adapters are
    # restored by whoever holds them, not by each layer's config.
    return type(base.__name__, (mixin, base), {"__module__": base.__module__})


def is_host(layer: keras.layers.Layer) -> bool:
    """Whether the layer holds at least one adapter."""
    return isinstance(layer, _Host)


def get_adapter(layer: keras.layers.Layer, name: str) -> LoraAdapter:
    """The adapter called `name` of an adapted layer."""
    return getattr(layer, _PREFIX + name)


def attach(layer: keras.layers.Layer, config: LoraConfig, name: str, path: str) -> LoraAdapter:
    """Add the adapter `name` to a built layer, in place, and make it active.

    Args:
        layer: A built Dense, EinsumDense, Embedding or subclass, quantised or not.
        config: What the adapter is.
        name: Name of the adapter, unique in the layer.
        path: Path under which the adapter's variables appear, unique in the model.

    Returns:
        The new adapter.

    Raises:
        AdapterError: If the layer is of another kind, is not built, has a kernel constraint or
            Keras' own LoRA, or holds an adapter of that name.
    """
    _check_host(layer, name, path)
    adapter_name = _PREFIX + name
    if isinstance(layer, keras.layers.Embedding):
        adapter: LoraAdapter = EmbeddingLora(
            config, layer.input_dim, layer.output_dim, layer.compute_dtype, adapter_name
        )
    else:
        equation, shape = layer_equation(layer), layer_kernel_shape(layer)
        adapter = LinearLora(config, equation, shape, layer.compute_dtype, adapter_name)
    with contextlib.ExitStack() as scopes:
        for part in path.split("/"):
            scopes.enter_context(keras.name_scope(part))
        adapter.build()
    if not is_host(layer):
        base: Hashable = type(layer)
        layer.__class__ = _host_class(base)
        layer.adapter_names = ()
        layer.active_adapters = ()
    with _unlocked(layer):
        setattr(layer, adapter_name, adapter)
    layer.adapter_names = (*layer.adapter_names, name)
    layer.active_adapters = (*layer.active_adapters, name)
    return adapter


def detach(layer: keras.layers.Layer, name: str) -> None:
    """Remove the adapter `name`; a layer without any left is again what it was."""
    with _unlocked(layer):
        layer._tracker.untrack(get_adapter(layer, name))
        delattr(layer, _PREFIX + name)
    layer.adapter_names = tuple(n for n in layer.adapter_names if n != name)
    layer.active_adapters = tuple(n for n in layer.active_adapters if n != name)
    if not layer.adapter_names:
        del layer.adapter_names, layer.active_adapters
        layer.__class__ = type(layer).__bases__[1]


def _check_host(layer: keras.layers.Layer, name: str, path: str) -> None:
    if not isinstance(layer, HOST_TYPES):
        raise AdapterError(
            f"Adapters go on Dense, EinsumDense and Embedding layers. Received: layer '{path}' "
            f"of type {type(layer).__name__}."
        )
    if not layer.built:
        raise AdapterError(
            f"Layer '{path}' has no kernel yet. Call the model on some data, or build it, before "
            "adding adapters."
        )
    if getattr(layer, "lora_enabled", False):
        raise AdapterError(
            f"Layer '{path}' already has Keras' own LoRA. Load the model afresh and add kerora's "
            "adapter instead."
        )
    constraint = "kernel_constraint" if hasattr(layer, "kernel_constraint") else None
    constraint = constraint or "embeddings_constraint"
    if getattr(layer, constraint, None) is not None:
        raise AdapterError(
            f"Layer '{path}' has a {constraint}, which an adapter would bypass. Remove the "
            "constraint or exclude the layer."
        )
    if is_host(layer) and name in layer.adapter_names:
        raise AdapterError(
            f"Layer '{path}' already holds an adapter named '{name}'. Remove it first, or give "
            "the new one another name."
        )


@contextlib.contextmanager
def _unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    # Keras locks a built layer against new variables and has no public call to reopen it; its own
    # `enable_lora` uses this one.
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()
