"""Adapting one layer in place.

The host layer keeps its identity, its path and its untouched base weights. Its class becomes a
subclass that adds the active adapters to the layer's own output, and each adapter is tracked as a
child layer, so that saving, optimizers and `summary()` see ordinary variables.

A copy made from an adapted layer's config (`from_config`, `keras.models.clone_model`) is the base
layer, without adapters.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerora.adapters.config import LoraConfig
from kerora.adapters.contraction import merging_is_cheaper
from kerora.adapters.errors import AdapterError
from kerora.adapters.factorization import layer_equation, layer_kernel_shape
from kerora.adapters.int8_head import int8_logits, is_int8_head
from kerora.adapters.lora import EmbeddingLora, LinearLora, LoraAdapter
from kerora.adapters.stand_in import stand_in

HOST_TYPES = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
_PREFIX = "adapter_"


class _Host(keras.layers.Layer):
    """What every adapted layer has beside its own class.

    Attributes:
        adapter_names: Names of the adapters it holds, in the order they were added.
        active_adapters: Names of those that take part in the forward pass.
    """

    adapter_names: tuple[str, ...] = ()
    active_adapters: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config):
        return _base_class(cls).from_config(config)

    def quantize(self, mode=None, *args, **kwargs):
        raise AdapterError(
            f"Layer '{self.path}' holds an adapter and can no longer be quantized. "
            f"Received: mode={mode!r}. Quantize the model first, then add the adapter."
        )

    def _call_adapted(self, base_call, inputs, *args, **kwargs):
        """The layer's output with its active adapters, which each kind of layer computes its way.

        A layer becomes a host by a change of its class and is never made as one, so `abc.ABC`
        would not tell of a kind that lacks it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it calls its adapters.")

    def call(self, *args, **kwargs):
        return self._call_adapted(_base_class(type(self)).call, *args, **kwargs)

    def quantized_call(self, *args, **kwargs):
        return self._call_adapted(_base_class(type(self)).quantized_call, *args, **kwargs)


class _LinearHost(_Host):
    activation: Callable | None

    def _call_adapted(self, base_call, inputs, *args, **kwargs):
        adapters = [get_adapter(self, name) for name in self.active_adapters]
        if merging_is_cheaper(self, adapters, inputs):
            merged = stand_in(self, _kernel=_sum_kernel(self, adapters))
            return base_call(merged, inputs, *args, **kwargs)
        # The delta belongs before the activation, which the layer's own call ends with.
        linear = self if self.activation is None else stand_in(self, activation=None)
        outputs = base_call(linear, inputs, *args, **kwargs)
        for adapter in adapters:
            outputs = outputs + keras.ops.cast(adapter(inputs), outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)


def _sum_kernel(layer, adapters):
    return functools.reduce(keras.ops.add, [a.delta() for a in adapters], layer.kernel)


class _EmbeddingHost(_Host):
    tie_weights: bool

    def _call_adapted(self, base_call, inputs, *args, reverse=False, **kwargs):
        if not reverse:
            return self._lookup(base_call, inputs, *args, **kwargs)
        # The delta belongs before the soft cap, which the layer's own call ends with.
        cap = getattr(self, "logit_soft_cap", None)
        uncapped = self if cap is None else stand_in(self, logit_soft_cap=None)
        if is_int8_head(self):
            logits = int8_logits(self, functools.partial(base_call, uncapped), inputs)
        else:
            logits = base_call(uncapped, inputs, *args, reverse=True, **kwargs)
        for name in self.active_adapters if self.tie_weights else ():
            delta = get_adapter(self, name)(inputs, reverse=True)
            logits = logits + keras.ops.cast(delta, logits.dtype)
        return logits if cap is None else keras.ops.tanh(logits / cap) * cap

    def _lookup(self, base_call, inputs, *args, **kwargs):
        base = base_call(self, inputs, *args, **kwargs)
        outputs = base
        for name in self.active_adapters:
            outputs = outputs + keras.ops.cast(get_adapter(self, name)(inputs), outputs.dtype)
        # A ReversibleEmbedding hands its padding mask on as an attribute of what it returns.
        mask = getattr(base, "_keras_mask", None)
        if mask is not None:
            outputs._keras_mask = mask
        return outputs


@functools.cache
def _host_class(base: Any) -> type[_Host]:
    mixin = _EmbeddingHost if issubclass(base, keras.layers.Embedding) else _LinearHost
    # Under the base's own name and module the layer serialises as what it was: adapters are
    # restored by whoever holds them, not by each layer's config.
    return type(base.__name__, (mixin, base), {"__module__": base.__module__})


def _base_class(host_class: type[_Host]) -> type[keras.layers.Layer]:
    return host_class.__bases__[1]


def is_host(layer: keras.layers.Layer) -> bool:
    """Whether the layer holds at least one adapter."""
    return isinstance(layer, _Host) and bool(layer.adapter_names)


def become_host(layer: keras.layers.Layer) -> None:
    """Make a layer ready to hold adapters; without any it computes what it did."""
    if not isinstance(layer, _Host):
        base: Any = type(layer)
        layer.__class__ = _host_class(base)
        uncover_quantize(layer)


@contextlib.contextmanager
def as_base(layer: keras.layers.Layer) -> Iterator[None]:
    """Within it the layer, host or not, has its own class, which may be changed."""
    if not isinstance(layer, _Host):
        yield
        return
    layer.__class__ = _base_class(type(layer))
    try:
        yield
    finally:
        base: Any = type(layer)
        layer.__class__ = _host_class(base)


def become_base(layer: keras.layers.Layer) -> None:
    """Undo `become_host` on a layer that holds no adapter."""
    if isinstance(layer, _Host) and not layer.adapter_names:
        layer.__class__ = _base_class(type(layer))
        layer.__dict__["quantize"] = layer.__dict__.pop("_base_quantize")


def uncover_quantize(layer: keras.layers.Layer) -> None:
    """Let the `quantize` of the class be what `layer.quantize` calls.

    Keras puts a wrapper of its own on each layer, which hides what a class that the layer is given
    later has; it is kept as `_base_quantize`.
    """
    if "quantize" in layer.__dict__:
        layer.__dict__["_base_quantize"] = layer.__dict__.pop("quantize")


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
            Keras' own LoRA.
    """
    _check_host(layer, path)
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
    become_host(layer)
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
        become_base(layer)


def _check_host(layer: keras.layers.Layer, path: str) -> None:
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


@contextlib.contextmanager
def _unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    # Keras locks a built layer against new variables and has no public call to reopen it; its own
    # `enable_lora` uses this one.
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()
