"""What KerasHub's converters drop from a Hugging Face configuration, and how it is mended.

A base that is loaded from a Hugging Face folder must compute what `transformers` computes. For the
families named here the dropped fields are passed to the backbone's constructor where it takes them,
and set on its layers where it does not; a value that KerasHub's layers cannot express is an error.

| field | dropped by |
|---|---|
| `rms_norm_eps` | Llama, Gemma, Gemma 2; inside the blocks also Gemma 3 and Qwen 3 |
| `rope_parameters` (Llama 3 scaling) | Llama, when written by transformers 5 |
| `rope_theta` | Gemma, Gemma 2, Gemma 3 |
| `query_pre_attn_scalar` | Gemma 2, Gemma 3 (always taken as `head_dim`) |
| `use_sliding_window` | Qwen 2, Qwen 3 (their fused attention has no window): refused |
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.adapters.targets import sublayers
from kerora.models.converters import text_config
from kerora.models.errors import ModelSourceError

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")
_ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
_MENDED = (*_ROTARY, "gemma3", "gemma3_text")
_DEFAULT_THETA = 10_000.0


def constructor_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the backbone's constructor that mend what its converter drops.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    family, text = config["model_type"], text_config(config)
    if family not in _MENDED:
        return {}
    _check_head(family, text)
    if family in ("qwen2", "qwen3") and text.get("use_sliding_window"):
        raise _inexpressible(family, "use_sliding_window", True, False)
    _check_activation(family, text)
    arguments: dict[str, Any] = {"layer_norm_epsilon": text.get("rms_norm_eps", 1e-6)}
    if family in _ROTARY:
        arguments.update(_rotary_arguments(family, _rope(text)))
    return arguments


def mend_layers(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Set on a backbone's layers what its constructor does not take.

    Args:
        backbone: A backbone that was built for `config`.
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    family, text = config["model_type"], text_config(config)
    if family not in _MENDED:
        return
    sliding = _sliding_layers(family, text)
    for index, block in enumerate(backbone.transformer_layers):
        for layer, _ in sublayers(block):
            if hasattr(layer, "epsilon"):
                layer.epsilon = text.get("rms_norm_eps", 1e-6)
            if family in _GEMMA and hasattr(layer, "max_wavelength"):
                layer.max_wavelength = _gemma_theta(family, text, sliding[index])
            if family in _GEMMA and hasattr(layer, "query_head_dim_normalize"):
                scalar = text.get("query_pre_attn_scalar") or text["head_dim"]
                layer.query_head_dim_normalize = scalar == text["head_dim"]


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes `rope_parameters`; older versions `rope_theta` and `rope_scaling`.
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return {"rope_type": rope.get("type", "default"), **rope}


def _rotary_arguments(family: str, rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope["rope_type"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _inexpressible(family, "partial_rotary_factor", rope["partial_rotary_factor"], 1.0)
    if kind == "default":
        return {}
    if kind == "linear" and family == "llama":
        return {"rope_position_scaling_factor": rope["factor"]}
    if kind == "linear" and family in ("mistral", "qwen2", "qwen3"):
        return {"rope_scaling_factor": rope["factor"]}
    if kind == "llama3" and family == "llama":
        return {
            "rope_frequency_adjustment_factor": rope["factor"],
            "rope_low_freq_factor": rope["low_freq_factor"],
            "rope_high_freq_factor": rope["high_freq_factor"],
            "rope_pretraining_sequence_length": rope["original_max_position_embeddings"],
        }
    raise _inexpressible(family, "rope_type", kind, "'default'")


def _gemma_theta(family: str, text: dict[str, Any], is_sliding: bool) -> float:
    rope = text.get("rope_parameters") or {}
    if family in ("gemma", "gemma2"):
        return rope.get("rope_theta", text.get("rope_theta", _DEFAULT_THETA))
    if is_sliding:
        local = text.get("rope_local_base_freq", _DEFAULT_THETA)
        return rope.get("sliding_attention", {}).get("rope_theta", local)
    return rope.get("full_attention", {}).get("rope_theta", text.get("rope_theta", 1_000_000.0))


def _sliding_layers(family: str, text: dict[str, Any]) -> list[bool]:
    count, period = text["num_hidden_layers"], {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}
    if family not in period:
        return [False] * count
    expected = [(index + 1) % period[family] != 0 for index in range(count)]
    types = text.get("layer_types") or ["sliding_attention" if s else "" for s in expected]
    sliding = [kind == "sliding_attention" for kind in types]
    pattern = text.get("sliding_window_pattern") or period[family]
    if sliding != expected or pattern != period[family]:
        raise _inexpressible(
            family, "layer_types", types, f"full attention in every {period[family]}th layer only"
        )
    return sliding


def _check_head(family: str, text: dict[str, Any]) -> None:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    if family in ("llama", "qwen2") and head_dim * heads != hidden:
        raise _inexpressible(family, "head_dim", head_dim, f"{hidden // heads}, hidden / heads")
    scalar = text.get("query_pre_attn_scalar")
    if scalar is not None and scalar not in (head_dim, hidden / heads):
        raise _inexpressible(
            family, "query_pre_attn_scalar", scalar, f"{head_dim} or {hidden / heads}"
        )


def _check_activation(family: str, text: dict[str, Any]) -> None:
    if family not in _GEMMA and text.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _inexpressible(family, "hidden_act", text["hidden_act"], "'silu'")


def _inexpressible(family: str, field: str, value: object, expected: object) -> ModelSourceError:
    return ModelSourceError(
        f"KerasHub's backbone for '{family}' has no way to express this `{field}`. Expected: "
        f"{expected}. Received: {value!r}. Loaded regardless, the model would give other answers."
    )
