"""A Hugging Face `config.json` in the words that KerasHub's converters read.

transformers 5 writes some fields under other names, or in other places, than the files that the
converters were written for.

| model type | what transformers 5 writes | what the converter reads |
|---|---|---|
| `qwen3_moe`, `qwen3_5_moe` | `num_local_experts` | `num_experts` |
| `llama` | `rope_parameters`, where older files have `rope_scaling` | Llama 3's scaling alone |
| `bart` | `encoder_layers` | `num_hidden_layers` |
| `gemma4` | `per_layer_config` | `global_head_dim`, `num_global_key_value_heads` |
| `qwen3_5_text`, `qwen3_5_moe_text` | the language model alone | it under `text_config` |
| `gemma3n_text` | the language model alone, and no field that has its default | all fields there |
| `sam3` | the detector alone | it under `detector_config` |

Of a model that sees (`Gemma3ForConditionalGeneration` and its like, T5Gemma 2) the language model
alone is read: it gives the same logits for text, and takes no images and no memory for a vision
tower.
"""

from __future__ import annotations

from typing import Any

from kerora.json_file import shown
from kerora.models.errors import ModelSourceError
from kerora.models.huggingface_gemma3n import with_gemma3n_defaults
from kerora.models.huggingface_metaclip2 import complete_metaclip2
from kerora.models.huggingface_paligemma import complete_paligemma
from kerora.models.huggingface_sam3 import complete_sam3
from kerora.models.huggingface_t5gemma2 import complete_t5gemma2

_GLOBAL_FIELDS = {
    "head_dim": "global_head_dim",
    "num_key_value_heads": "num_global_key_value_heads",
}
# The types of models that see, and of their language models alone.
_LANGUAGE_MODELS = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
# What `transformers` fills in where the published folders say nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "gemma4": {"tie_word_embeddings": True},
}


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration, with the fields that KerasHub's converter reads.

    Args:
        config: The `config.json` of a Hugging Face folder; left as it is.

    Returns:
        The configuration. `language_model_of` in it names the type of the model that it is the
        language model of, where the rest of that model is left out.

    Raises:
        ModelSourceError: If single layers differ in what KerasHub has one value for.
    """
    family = config.get("model_type", "")
    if family == "t5gemma2":
        return complete_t5gemma2(config)
    if family == "metaclip_2":
        return complete_metaclip2(config)
    if family == "paligemma":
        return complete_paligemma(config)
    if family in ("sam3", "sam3_video"):
        return complete_sam3(config)
    if "vision_config" in config and family in _LANGUAGE_MODELS:
        return _language_model(config)
    if family == "gemma3n_text":
        return {
            "model_type": "gemma3n",
            "architectures": config.get("architectures"),
            "text_config": with_gemma3n_defaults(config),
        }
    if family in ("qwen3_5_text", "qwen3_5_moe_text"):
        return {
            "model_type": family.removesuffix("_text"),
            "architectures": config.get("architectures"),
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
            "text_config": _with_experts(config),
        }
    if family == "gemma4_text":
        return _with_global_fields(config)
    if family == "llama" and config.get("rope_scaling") and not config.get("rope_parameters"):
        return _with_rope_parameters(config)
    if family == "bart":
        return {"num_hidden_layers": config.get("encoder_layers"), **config}
    if family == "qwen3_moe":
        return _with_experts(config)
    return config


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    family = config["model_type"]
    text = {
        **_DEFAULTS.get(family, {}),
        **config["text_config"],
        "model_type": _LANGUAGE_MODELS[family],
        "architectures": config.get("architectures"),
    }
    if "tie_word_embeddings" in config:
        # The whole model's counts.
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    return {**complete_config(text), "language_model_of": family}


def _with_experts(text: dict[str, Any]) -> dict[str, Any]:
    if "num_experts" in text or "num_local_experts" not in text:
        return text
    return {**text, "num_experts": text["num_local_experts"]}


def _with_rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    scaling = config["rope_scaling"]
    rope = {
        "rope_type": scaling.get("type", "default"),
        "rope_theta": config.get("rope_theta", 10_000.0),
        **scaling,
    }
    return {**config, "rope_parameters": rope, "rope_scaling": None}


def _with_global_fields(text: dict[str, Any]) -> dict[str, Any]:
    layers = {int(n): fields for n, fields in (text.get("per_layer_config") or {}).items()}
    if not layers:
        return text
    types = text["layer_types"]
    full = [n for n, kind in enumerate(types) if kind == "full_attention"]
    result = dict(text)
    for index, fields in layers.items():
        if index not in full or set(fields) - set(_GLOBAL_FIELDS):
            raise _differing_layers(layers)
    for field, name in _GLOBAL_FIELDS.items():
        values = [layers.get(index, {}).get(field) for index in full]
        if len(set(values)) > 1:
            raise _differing_layers(layers)
        if values[0] is not None:
            result[name] = values[0]
    return result


def _differing_layers(layers: object) -> ModelSourceError:
    return ModelSourceError(
        "KerasHub's Gemma 4 gives all layers of full attention the same `head_dim` and "
        "`num_key_value_heads`, and no layer other fields of its own. Received: "
        f"per_layer_config={shown(layers)}"
    )
