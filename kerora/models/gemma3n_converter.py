"""The converter of Gemma 3n's language model alone; KerasHub's own reads its towers too.

It has the functions of KerasHub's converters and stands in for the one of Gemma 3n. This file is
the one place that calls what is private to that.
"""

from __future__ import annotations

from typing import Any

from keras_hub.src.utils.transformers import convert_gemma3n

from kerora.models.errors import inexpressible

backbone_cls = convert_gemma3n.backbone_cls
convert_tokenizer = convert_gemma3n.convert_tokenizer

# Fields that the constructor of the backbone takes under other names.
_RENAMED = {
    "vocab_size": "text_vocab_size",
    "hidden_size": "text_hidden_size",
    "final_logit_softcapping": "final_logit_soft_cap",
}
_TAKEN = (
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "layer_types", "sliding_window", "max_position_embeddings"),
    *("vocab_size_per_layer_input", "hidden_size_per_layer_input", "num_kv_shared_layers"),
    *("altup_num_inputs", "altup_coef_clip", "altup_active_idx", "altup_correct_scale"),
    *("laurel_rank", "activation_sparsity_pattern", "attention_dropout", "rms_norm_eps"),
)
_ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_approximate",
    "gelu_new": "gelu_approximate",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def convert_backbone_config(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `Gemma3nBackbone` without towers.

    Args:
        config: A `config.json` of type `gemma3n`, completed, with every field in `text_config`.

    Raises:
        ModelSourceError: For a value that KerasHub's layers cannot compute; names the field.
    """
    text = config["text_config"]
    _check(text)
    arguments = {field: text[field] for field in _TAKEN}
    arguments |= {name: text[field] for field, name in _RENAMED.items()}
    return {
        **arguments,
        "pad_token_id": 0,
        "hidden_activation": _ACTIVATIONS[text["hidden_activation"]],
        "rope_theta": _rope(text, _FULL)["rope_theta"],
        "rope_local_base_freq": _rope(text, _SLIDING)["rope_theta"],
    }


def convert_weights(backbone: Any, loader: Any, config: dict[str, Any]) -> None:
    """Fill the language model of a backbone.

    Args:
        backbone: A `Gemma3nBackbone`; one with towers is filled by KerasHub's converter.
        loader: Has KerasHub's `port_weight`.
        config: The `config.json`.
    """
    if backbone.vision_encoder is not None or backbone.audio_encoder is not None:
        convert_gemma3n.convert_weights(backbone, loader, config)
        return
    convert_gemma3n._port_language_model(_LoaderOfUsed(backbone, loader), backbone)


def shared_projections(index: int) -> set[str]:
    """Names, from `layers` on, of the projections of a layer that takes over keys and values.

    `transformers` has none there, and skips those that a file may hold.
    """
    return {f"layers.{index}.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")}


def unused_tensors(backbone: Any) -> set[str]:
    """Names, from `layers` on, of tensors that a file may hold and no layer computes with."""
    unused = set()
    for index, block in enumerate(backbone.language_model.transformer_layers):
        if block.is_kv_shared_layer:
            unused |= shared_projections(index)
        if not block.altup_correct_scale:
            unused.add(f"layers.{index}.altup.correct_output_scale")
    return unused


class _LoaderOfUsed:
    """A loader that is not asked for `unused_tensors`, which may be missing."""

    def __init__(self, backbone: Any, loader: Any) -> None:
        self._loader, self._unused = loader, unused_tensors(backbone)

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        """As KerasHub's."""
        if hf_weight_key.removeprefix("model.language_model.") not in self._unused:
            self._loader.port_weight(keras_variable, hf_weight_key, hook_fn)


def _check(text: dict[str, Any]) -> None:
    types, shared = text["layer_types"], text["num_kv_shared_layers"]
    own = types[: len(types) - shared]
    expected: dict[str, tuple[bool, object]] = {
        "tie_word_embeddings": (bool(text["tie_word_embeddings"]), True),
        "attention_bias": (not text["attention_bias"], False),
        "hidden_activation": (
            text["hidden_activation"] in _ACTIVATIONS,
            " or ".join(map(repr, _ACTIVATIONS)),
        ),
        "layer_types": (
            set(types) <= {_FULL, _SLIDING} and len(types) == text["num_hidden_layers"],
            f"'{_FULL}' or '{_SLIDING}' for each layer",
        ),
        "num_kv_shared_layers": (
            set(types) <= set(own),
            "layers before the shared ones of each of their `layer_types`",
        ),
        "activation_sparsity_pattern": (
            all(0 <= value < 1 for value in text["activation_sparsity_pattern"]),
            "numbers from 0 to 1",
        ),
    }
    for field, (fine, what) in expected.items():
        if not fine:
            raise inexpressible("gemma3n", field, text[field], what)
    for kind in (_FULL, _SLIDING):
        if _rope(text, kind)["rope_type"] != "default":
            raise inexpressible("gemma3n", "rope_type", _rope(text, kind)["rope_type"], "'default'")


def _rope(text: dict[str, Any], kind: str) -> dict[str, Any]:
    # transformers 5 writes `rope_parameters`; older versions a field for each kind of layer.
    rope = (text.get("rope_parameters") or {}).get(kind) or {}
    if kind == _FULL:
        theta, older = text.get("rope_theta", 1_000_000.0), text.get("rope_scaling") or {}
    else:
        theta, older = text.get("rope_local_base_freq", 10_000.0), {}
    type_of_rope = older.get("rope_type", older.get("type", "default"))
    return {"rope_theta": theta, "rope_type": type_of_rope, **rope}
