"""A bfloat16 base on the CPU, under JAX: its products in bfloat16, everything else in float32.

A CPU that multiplies bfloat16 does so at twice the rate of float32, but only bfloat16 by bfloat16
into float32 sums; norms, rotations, softmax and residuals gain nothing from half a precision, which
it computes in float32 and rounds. So the weights stay bfloat16, each product rounds its activations
to bfloat16, and what lies between products is float32: as quick as the one, and nearly as exact as
the other.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import keras
from keras import ops

from kerora.adapters.factorization import layer_equation
from kerora.adapters.host import as_base
from kerora.adapters.lora import LoraAdapter
from kerora.models.extended_layers import extend_layer

_LINEAR = (keras.layers.Dense, keras.layers.EinsumDense)
_CPU_FLAG = "avx512_bf16"


class Bfloat16Kernels(keras.DTypePolicy):
    """Variables in bfloat16, computation in float32."""

    def __init__(self) -> None:
        super().__init__("float32")

    @property
    def variable_dtype(self) -> str:
        return "bfloat16"


def on_cpu() -> bool:
    """Whether tensors are on the CPU by default."""
    return "cpu" in str(ops.zeros(()).device).lower()


def multiplies_bfloat16() -> bool:
    """Whether the default device is a CPU with products of bfloat16 that JAX makes use of."""
    if keras.backend.backend() != "jax" or not on_cpu():
        return False
    try:
        return _CPU_FLAG in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def product_dtype(layer: keras.layers.Layer) -> str:
    """The type in which a layer multiplies, `"bfloat16"` say."""
    if isinstance(layer.dtype_policy, Bfloat16Kernels):
        return "bfloat16"
    return layer.compute_dtype


def compute_in_float32(backbone: keras.Model) -> None:
    """Let a backbone that was loaded in bfloat16 compute in float32 between its products.

    Args:
        backbone: A built backbone. Only layers of type bfloat16 change, and only under JAX on a
            CPU; their variables stay as they are.
    """
    if keras.backend.backend() != "jax" or not on_cpu():
        return
    for layer in backbone._flatten_layers(include_self=False):
        if isinstance(layer, LoraAdapter):
            layer.dtype_policy = "float32"
        elif layer.dtype_policy.name == "bfloat16":
            layer.dtype_policy = Bfloat16Kernels()
            with as_base(layer):
                _multiply_in_bfloat16(layer)


def _multiply_in_bfloat16(layer: Any) -> None:
    if isinstance(layer, keras.layers.Embedding):
        _keep_type(layer.embeddings)
    if type(layer) in _LINEAR:
        _keep_type(layer.kernel)
        _extend(layer, _Linear)
    elif type(layer) is keras.layers.ReversibleEmbedding:
        if not layer.tie_weights:
            _keep_type(layer.reverse_embeddings)
        _extend(layer, _Embedding)


def _extend(layer: Any, mixin: type) -> None:
    own, quantize_own = type(layer), layer.quantize
    extend_layer(layer, mixin)
    extended = type(layer)

    @functools.wraps(quantize_own)
    def quantize(*args: Any, **kwargs: Any) -> None:
        layer.__class__ = own  # Keras quantises no subclass.
        try:
            quantize_own(*args, **kwargs)
        except BaseException:
            layer.__class__ = extended
            raise

    layer.quantize = quantize


class _Linear(keras.layers.Layer):
    """What a Dense or EinsumDense computes from a bfloat16 kernel."""

    kernel: Any
    bias: Any
    activation: Any

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = _product(layer_equation(self), inputs, self.kernel)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


class _Embedding(keras.layers.Layer):
    """What a ReversibleEmbedding computes from a bfloat16 table."""

    embeddings: Any
    reverse_embeddings: Any
    tie_weights: bool
    logit_soft_cap: float | None

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        if not reverse:
            return super().call(inputs)
        if self.tie_weights:
            logits = _product("...d,vd->...v", inputs, self.embeddings)
        else:
            logits = _product("...d,dv->...v", inputs, self.reverse_embeddings)
        cap = self.logit_soft_cap
        return logits if cap is None else ops.tanh(logits / cap) * cap


def _product(equation: str, inputs: Any, kernel: Any) -> Any:
    from kerora.models.cpu_bfloat16_jax import product

    return product(equation, inputs, ops.convert_to_tensor(kernel))


def _keep_type(variable: keras.Variable) -> None:
    # Or reading it within the layer's call would widen the whole of it. Keras has no public way to
    # say so of a variable that is there already.
    variable._autocast = False
