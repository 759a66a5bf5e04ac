"""What KerasHub's converters drop from a Hugging Face configuration, and how it is mended.

A base that is loaded from a Hugging Face folder must compute what `transformers` computes. For the
families named here the dropped fields are passed to the backbone's constructor where it takes them,
and set on its layers where it does not; a value that KerasHub's layers cannot express is an error.

| field | dropped by |
|---|---|
| `rms_norm_eps` | Llama, Gemma, Gemma 2; inside the blocks also Gemma 3 and Qwen 3 |
| `rope_parameters` (Llama 3 scaling) | Llama, when written by transformers 5 |
| `rope_parameters` (YaRN) | GPT-OSS, when written by transformers 5 |
| `rope_parameters` (linear scaling: it is taken, and its layers pass it by) | Llama |
| `rope_parameters` (linear scaling) | Gemma, Gemma 2 |
| `rope_theta` | Gemma, Gemma 2, Gemma 3 |
| `rope_type` other than linear, a `factor` of the default one | Gemma 3: refused |
| `query_pre_attn_scalar` | Gemma 2, Gemma 3 (always taken as `head_dim`) |
| `use_sliding_window` | Qwen 2, Qwen 3 and their MoE forms: refused |
| `tie_word_embeddings` | Qwen 2 MoE |
| `mlp_only_layers`, `decoder_sparse_step` | Qwen 2 MoE, Qwen 3 MoE: refused |
| `layer_types` | GPT-OSS (takes the odd layers as the sliding ones, and a window one wider) |
| `tie_word_embeddings` false | SmolLM3, GPT-2: refused |
| `layer_norm_epsilon`, `n_inner` | GPT-2 |
| `layer_norm_eps` | BERT, RoBERTa, XLM-RoBERTa, ALBERT, ViT, DINOv2, Swin |
| `hidden_act` `gelu` (taken as its approximation) | BERT |
| `token_type_embeddings` | RoBERTa |
| `hidden_act` other than GELU | encoders, DINOv3 aside: refused |
| `qkv_bias` false | ViT, DeiT, DINOv2: refused |
| `use_absolute_embeddings`, an `image_size` that is no whole windows | Swin: refused |
| `sliding_window` | T5Gemma (none in the encoder, one wider in the decoder) |
| `token_dropout`, `rope_theta`, and the mask of padding | ESM |
| `position_embedding_type` other than rotary | ESM: refused |
| `scale_embedding`, `decoder_attention_heads` other than the encoder's | BART: refused |
| fields in which encoder and decoder differ | T5Gemma, T5Gemma 2: refused |
| `rope_theta` of full attention, the encoder's `sliding_window`, `eoi_embedding` | T5Gemma 2 |
| `attn_logit_softcapping`, rotary scaling other than linear | T5Gemma 2: refused |
| `head_dim`, `vocab_size`, epsilons; all that PaliGemma 2 has of Gemma 2 | PaliGemma |
| `feed_forward_proj` (the approximate GELU of Flan-T5) | BLIP-2 |
| `rope_parameters` (the base of local layers) | Gemma 3n |
| `rope_parameters` (scaling), `attention_bias`, `tie_word_embeddings` false | Gemma 3n: refused |
| `layer_norm_eps`, `eos_token_id` (where a text is read off) | MetaCLIP 2 |
| `hidden_act` other than GELU and quick GELU | MetaCLIP 2: refused |
| `layer_norm_eps` of the text encoder, the order of its tokens, boxes that are not there | SAM 3 |
| `hidden_act` other than GELU, ReLU and SiLU | SAM 3: refused |
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.adapters.targets import sublayers
from kerora.models.converters import text_config
from kerora.models.errors import inexpressible
from kerora.models.huggingface_bart import check_bart
from kerora.models.huggingface_blip2 import check_blip2, mend_blip2
from kerora.models.huggingface_esm import esm_arguments, mend_esm
from kerora.models.huggingface_gemma3n import mend_gemma3n
from kerora.models.huggingface_metaclip2 import check_metaclip2, mend_metaclip2
from kerora.models.huggingface_paligemma import mend_paligemma, paligemma_arguments
from kerora.models.huggingface_sam3 import check_sam3, mend_sam3
from kerora.models.huggingface_swin import check_swin, configured_norms
from kerora.models.huggingface_t5gemma import check_t5gemma, mend_t5gemma
from kerora.models.huggingface_t5gemma2 import check_t5gemma2, mend_t5gemma2
from kerora.models.set_on_layers import note_set, set_on_layer

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")
_WITH_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
_ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3", *_WITH_EXPERTS)
_MENDED = (*_ROTARY, "gemma3", "gemma3_text", "gpt_oss")
# Their layers take the size of a head as hidden size / heads.
_FIXED_HEAD = ("llama", "qwen2", "mixtral", "qwen2_moe", "smollm3")
_LINEAR_SCALING = ("mistral", "qwen2", "qwen3", *_WITH_EXPERTS)
# Linear scaling can be set on their layers alone.
_SCALED_LAYERS = ("gemma", "gemma2")
# The field of the epsilon of LayerNormalization, and its default.
_LAYER_NORM_EPSILON = {
    "gpt2": ("layer_norm_epsilon", 1e-5),
    "bert": ("layer_norm_eps", 1e-12),
    "roberta": ("layer_norm_eps", 1e-12),
    "xlm-roberta": ("layer_norm_eps", 1e-12),
    "albert": ("layer_norm_eps", 1e-12),
    "dinov2": ("layer_norm_eps", 1e-6),
    "dinov2_with_registers": ("layer_norm_eps", 1e-6),
}
_APPROXIMATE_GELU = ("gelu_pytorch_tanh", "gelu_new")
_SILU = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt_oss", *_WITH_EXPERTS)
_QWEN3_5 = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
_LATER_GEMMA = ("gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text")
_GELU = ("roberta", "xlm-roberta", "vit", "deit", "dinov2", "dinov2_with_registers")
# The field of the activation, and the values of it that KerasHub's layers compute.
_ACTIVATIONS = {
    **dict.fromkeys((*_SILU, *_QWEN3_5), ("hidden_act", ("silu", "swish"))),
    # Gemma's files say "gelu", and `transformers` takes its approximation for them all the same.
    "gemma": ("hidden_act", (*_APPROXIMATE_GELU, "gelu")),
    **dict.fromkeys(_LATER_GEMMA, ("hidden_activation", _APPROXIMATE_GELU)),
    **dict.fromkeys(_GELU, ("hidden_act", ("gelu",))),
    "bert": ("hidden_act", ("gelu", *_APPROXIMATE_GELU)),
    "albert": ("hidden_act", _APPROXIMATE_GELU),
    "distilbert": ("activation", ("gelu",)),
    "bart": ("activation_function", ("gelu",)),
}
_LLAMA3_OF_ALL = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1,
}
_DEFAULT_THETA = 10_000.0
_CHECKS = {
    "bart": check_bart,
    "blip-2": check_blip2,
    "metaclip_2": check_metaclip2,
    "sam3_video": check_sam3,
    "swin": check_swin,
    "t5gemma": check_t5gemma,
    "t5gemma2": check_t5gemma2,
}


def constructor_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the backbone's constructor that mend what its converter drops.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    family, text = config["model_type"], text_config(config)
    if family == "paligemma":
        own = paligemma_arguments(config)
        return {**constructor_arguments(text), **own}
    if family == "esm":
        return esm_arguments(config)
    if family in _CHECKS:
        _CHECKS[family](config)
    if family == "gpt2":
        return _gpt2_arguments(text)
    _check_activation(family, text)
    has_qkv_bias = family in ("vit", "deit", "dinov2", "dinov2_with_registers")
    if has_qkv_bias and not text.get("qkv_bias", True):
        raise inexpressible(family, "qkv_bias", text["qkv_bias"], True)
    if family == "vit":
        return {"layer_norm_epsilon": text.get("layer_norm_eps", 1e-12)}
    if family in _QWEN3_5:
        _check_rotary(family, _rope(text), "default")
    if family in ("gemma4", "gemma4_text"):
        by_type = text.get("rope_parameters") or {}
        _check_rotary(family, by_type.get("sliding_attention") or {}, "default")
        _check_rotary(family, by_type.get("full_attention") or {}, "proportional")
    if family not in _MENDED:
        return {}
    _check_head(family, text)
    if family.startswith(("qwen", "smollm")) and text.get("use_sliding_window"):
        raise inexpressible(family, "use_sliding_window", True, False)
    arguments: dict[str, Any] = {"layer_norm_epsilon": text.get("rms_norm_eps", 1e-6)}
    if family in ("gemma3", "gemma3_text"):
        _check_gemma3_rotary(family, text)
    if family in _ROTARY:
        arguments.update(_rotary_arguments(family, _rope(text)))
    if family in ("qwen2_moe", "qwen3_moe"):
        for field, value in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
            if (text.get(field) or value) != value:
                raise inexpressible(family, field, text[field], value)
        arguments["tie_word_embeddings"] = bool(text.get("tie_word_embeddings", False))
    if family == "qwen3_moe":
        # Its attention has a window wherever it is given one.
        arguments["sliding_window_size"] = None
    if family == "smollm3" and not text.get("tie_word_embeddings", True):
        raise inexpressible(family, "tie_word_embeddings", False, True)
    if family == "gpt_oss":
        arguments["rope_scaling_factor"] = _yarn_factor(family, _rope(text))
    return arguments


def mend_layers(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Set on a backbone's layers what its constructor does not take.

    What this changed is noted by `set_on_layers.py`: KerasHub's presets lose it.

    Args:
        backbone: A backbone that was built for `config`.
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    family, text = config["model_type"], text_config(config)
    if family == "paligemma":
        _mend_vision_norms(backbone, config["vision_config"])
        mend_paligemma(backbone)
        mend_layers(backbone, text)
        return
    if family == "blip-2":
        mend_blip2(backbone)
    if family == "esm":
        mend_esm(backbone, config)
    if family == "t5gemma":
        mend_t5gemma(backbone, config)
    if family == "t5gemma2":
        mend_t5gemma2(backbone, config)
    if family == "gemma3n":
        mend_gemma3n(backbone)
    if family == "swin":
        for norm in configured_norms(backbone):
            set_on_layer(backbone, norm, "epsilon", text.get("layer_norm_eps", 1e-5))
    if family == "metaclip_2":
        mend_metaclip2(backbone, config)
    if family == "sam3_video":
        mend_sam3(backbone, config)
    if family in _LAYER_NORM_EPSILON:
        field, default = _LAYER_NORM_EPSILON[family]
        for layer, _ in sublayers(backbone):
            if isinstance(layer, keras.layers.LayerNormalization):
                set_on_layer(backbone, layer, "epsilon", text.get(field, default))
    if family == "bert" and text.get("hidden_act", "gelu") == "gelu":
        for layer, _ in sublayers(backbone):
            if layer.name == "feedforward_intermediate_dense":
                layer.activation = keras.activations.gelu
        note_set(backbone, "hidden_act")
    if family not in _MENDED:
        return
    if family == "gpt_oss":
        _mend_windows(backbone, family, text)
    sliding = _sliding_layers(family, text)
    for index, block in enumerate(backbone.transformer_layers):
        for layer, _ in sublayers(block):
            if hasattr(layer, "epsilon"):
                set_on_layer(backbone, layer, "epsilon", text.get("rms_norm_eps", 1e-6))
            if family in _GEMMA and hasattr(layer, "max_wavelength"):
                theta = _gemma_theta(family, text, sliding[index])
                set_on_layer(backbone, layer, "max_wavelength", theta)
                if family in _SCALED_LAYERS and _rope(text)["rope_type"] == "linear":
                    set_on_layer(backbone, layer, "scaling_factor", _rope(text)["factor"])
            if family in _GEMMA and hasattr(layer, "query_head_dim_normalize"):
                scalar = text.get("query_pre_attn_scalar") or text["head_dim"]
                by_head = scalar == text["head_dim"]
                set_on_layer(backbone, layer, "query_head_dim_normalize", by_head)


def _mend_vision_norms(backbone: Any, vision: dict[str, Any]) -> None:
    for layer, _ in sublayers(backbone.vit_encoder):
        if isinstance(layer, keras.layers.LayerNormalization):
            set_on_layer(backbone, layer, "epsilon", vision.get("layer_norm_eps", 1e-6))


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes `rope_parameters`; older versions `rope_theta` and `rope_scaling`.
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return {"rope_type": rope.get("type", "default"), **rope}


def _rotary_arguments(family: str, rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope["rope_type"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise inexpressible(family, "partial_rotary_factor", rope["partial_rotary_factor"], 1.0)
    if kind == "default":
        return {}
    if kind == "linear" and family in _SCALED_LAYERS:
        return {}
    if kind == "linear" and family in _LINEAR_SCALING:
        return {"rope_scaling_factor": rope["factor"]}
    if kind == "linear" and family == "llama":
        # `rope_position_scaling_factor` is passed by. Llama 3's scaling divides by its factor the
        # frequencies of wavelengths past the context, and none is as short as a context of 1.
        rope = {**_LLAMA3_OF_ALL, "factor": rope["factor"]}
        kind = "llama3"
    if kind == "llama3" and family == "llama":
        return {
            "rope_frequency_adjustment_factor": rope["factor"],
            "rope_low_freq_factor": rope["low_freq_factor"],
            "rope_high_freq_factor": rope["high_freq_factor"],
            "rope_pretraining_sequence_length": rope["original_max_position_embeddings"],
        }
    raise inexpressible(family, "rope_type", kind, "'default'")


def _check_rotary(family: str, rope: dict[str, Any], kind: str) -> None:
    for field, value in (("rope_type", kind), ("factor", 1.0)):
        if rope.get(field, value) != value:
            raise inexpressible(family, field, rope[field], repr(value))


def _check_gemma3_rotary(family: str, text: dict[str, Any]) -> None:
    by_type = text.get("rope_parameters") or {}
    parts = (by_type.get("full_attention"), by_type.get("sliding_attention"))
    for rope in (text.get("rope_scaling"), *parts):
        kind = _rope({"rope_parameters": rope})["rope_type"]
        if kind not in ("default", "linear"):
            raise inexpressible(family, "rope_type", kind, "'default' or 'linear'")
        if kind == "default":
            # KerasHub divides by it whatever the type is.
            _check_rotary(family, rope or {}, kind)


def _yarn_factor(family: str, rope: dict[str, Any]) -> float:
    if rope["rope_type"] == "default":
        return 1.0
    if rope["rope_type"] != "yarn":
        raise inexpressible(family, "rope_type", rope["rope_type"], "'yarn'")
    fixed = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    for field, value in fixed.items():
        if rope.get(field, value) != value:
            raise inexpressible(family, field, rope[field], value)
    return rope["factor"]


def _mend_windows(backbone: keras.Model, family: str, text: dict[str, Any]) -> None:
    count, window = text["num_hidden_layers"], text["sliding_window"]
    types = text.get("layer_types") or ["sliding_attention", "full_attention"] * count
    for field, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if text.get(field, value) != value:
            raise inexpressible(family, field, text[field], value)
    if "sliding_attention" in types and window < 2:
        raise inexpressible(family, "sliding_window", window, "at least 2")
    for block, kind in zip(backbone.transformer_layers, types, strict=False):
        # Its mask lets a token see one more token before it than the window counts.
        is_sliding = kind == "sliding_attention"
        seen = window - 1 if is_sliding else None
        set_on_layer(backbone, block.self_attention_layer, "sliding_window", seen)


def _gpt2_arguments(text: dict[str, Any]) -> dict[str, Any]:
    expected = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    for field, values in expected.items():
        if text.get(field, values[0]) not in values:
            raise inexpressible("gpt2", field, text[field], " or ".join(map(repr, values)))
    inner = text.get("n_inner")
    return {} if inner is None else {"intermediate_dim": inner}


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
        raise inexpressible(
            family, "layer_types", types, f"full attention in every {period[family]}th layer only"
        )
    return sliding


def _check_head(family: str, text: dict[str, Any]) -> None:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    if family in _FIXED_HEAD and head_dim * heads != hidden:
        raise inexpressible(family, "head_dim", head_dim, f"{hidden // heads}, hidden / heads")
    scalar = text.get("query_pre_attn_scalar")
    if scalar is not None and scalar not in (head_dim, hidden / heads):
        raise inexpressible(
            family, "query_pre_attn_scalar", scalar, f"{head_dim} or {hidden / heads}"
        )


def _check_activation(family: str, text: dict[str, Any]) -> None:
    if family not in _ACTIVATIONS:
        return
    field, computed = _ACTIVATIONS[family]
    if (text.get(field) or computed[0]) not in computed:
        raise inexpressible(family, field, text[field], " or ".join(map(repr, computed)))
