"""The attention layers of KerasHub's decoders, and what each of them computes.

Every layer listed here projects its input, rotates queries and keys, and hands them to a private
method `_compute_attention(query, key, value, attention_mask, ...)`. What the method does with them
is one softmax with a handful of options, read off the layer by the function beside its name.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras_hub.src.utils.keras_utils import fused_attention_op_available


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """What tells one family's attention from another's.

    Attributes:
        scale: factor on the scores.
        soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`.
        window: a token sees itself and the `window - 1` tokens before it; `None` for all.
        sinks: `(heads,)` scores of a key that is always there and whose value is zero.
    """

    scale: float
    soft_cap: float | None = None
    window: int | None = None
    sinks: Any = None


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """Where a layer class is, and how to read it.

    Attributes:
        module: module below `keras_hub.src.models`.
        class_name: name of the layer class.
        options: reads the options off a built layer; `None` if it does more than they can say.
        repeats: the attribute that says how often keys and values are repeated for their queries,
            where the layer repeats them before `_compute_attention`.
        heads_first: whether queries, keys and values come as `(batch, heads, length, dim)`, and the
            probabilities are returned beside the output.
    """

    module: str
    class_name: str
    options: Callable[[Any], AttentionOptions | None]
    repeats: str | None = "num_key_value_groups"
    heads_first: bool = False


def _gemma(layer: Any) -> AttentionOptions | None:
    # Gemma drops out attention probabilities; every other family drops out the layer's output.
    if layer.dropout or getattr(layer, "use_bidirectional_attention", False):
        return None
    dim = layer.head_dim
    if not layer.query_head_dim_normalize:
        dim = layer.hidden_dim // layer.num_query_heads
    window = layer.sliding_window_size if layer.use_sliding_window_attention else None
    return AttentionOptions(1 / math.sqrt(dim), layer.logit_soft_cap, window)


def _gemma3n(layer: Any) -> AttentionOptions | None:
    if layer.attention_dropout:
        return None
    return AttentionOptions(1.0, window=layer.sliding_window)


def _gemma4(layer: Any) -> AttentionOptions | None:
    if layer.dropout or layer.use_bidirectional_attention:
        return None
    window = layer.sliding_window_size if layer.use_sliding_window_attention else None
    return AttentionOptions(1.0, layer.logit_soft_cap, window)


def _plain(layer: Any) -> AttentionOptions:
    return AttentionOptions(layer._inv_norm_factor)


def _mistral(layer: Any) -> AttentionOptions:
    return AttentionOptions(layer._inv_norm_factor, window=layer._sliding_window)


def _mixtral(layer: Any) -> AttentionOptions:
    return AttentionOptions(layer._inv_norm_factor, window=layer.sliding_window)


def _qwen(layer: Any) -> AttentionOptions:
    windowed = layer.use_sliding_window_attention
    return _windowed_unless_fused(layer, layer.sliding_window_size if windowed else None)


def _qwen3(layer: Any) -> AttentionOptions:
    return _windowed_unless_fused(layer, layer.sliding_window_size)


def _windowed_unless_fused(layer: Any, window: int | None) -> AttentionOptions:
    # KerasHub's Qwen layers forget the window where Keras has a fused attention. `generate` does
    # so too, and training follows it: a model must be trained as it will be run.
    if fused_attention_op_available():
        window = None
    return AttentionOptions(layer._inv_norm_factor, window=window or None)


def _gpt_oss(layer: Any) -> AttentionOptions:
    # KerasHub's mask keeps `key >= query - sliding_window`: one token more than the others do.
    window = layer.sliding_window + 1 if layer.sliding_window else None
    return AttentionOptions(layer._inv_norm_factor, window=window, sinks=layer.sinks)


ATTENTION_LAYERS = (
    AttentionLayer("gemma.gemma_attention", "CachedGemmaAttention", _gemma, repeats=None),
    AttentionLayer("gemma3.gemma3_attention", "CachedGemma3Attention", _gemma, repeats=None),
    AttentionLayer(
        "gemma3n.gemma3n_attention",
        "Gemma3nTextAttention",
        _gemma3n,
        repeats=None,
        heads_first=True,
    ),
    AttentionLayer("gemma4.gemma4_attention", "Gemma4TextAttention", _gemma4, repeats=None),
    AttentionLayer("llama.llama_attention", "LlamaAttention", _plain),
    AttentionLayer(
        "mistral.mistral_attention", "CachedMistralAttention", _mistral, "_num_key_value_groups"
    ),
    AttentionLayer("mixtral.mixtral_attention", "CachedMixtralAttention", _mixtral),
    AttentionLayer("qwen.qwen_attention", "QwenAttention", _qwen),
    AttentionLayer("qwen_moe.qwen_moe_attention", "QwenMoeAttention", _qwen),
    AttentionLayer("qwen3.qwen3_attention", "Qwen3Attention", _qwen3),
    AttentionLayer("qwen3_moe.qwen3_moe_attention", "Qwen3MoeAttention", _qwen3),
    AttentionLayer("phi3.phi3_attention", "Phi3Attention", _plain),
    AttentionLayer("gpt_oss.gpt_oss_attention", "GptOssAttention", _gpt_oss),
    AttentionLayer("smollm3.smollm3_layers", "SmolLM3Attention", _plain),
)
