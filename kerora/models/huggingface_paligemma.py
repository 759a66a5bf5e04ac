"""PaliGemma as `transformers` computes it: an image's tokens before those of a text.

| field | what KerasHub's converter makes of it |
|---|---|
| `head_dim` | takes the number of tokens of an image for it |
| `vocab_size` | takes the number of the image token for it, and cuts the table there |
| `rms_norm_eps`, `rope_theta` of the text, `layer_norm_eps` of images | dropped |
| a text model of type `gemma2` (PaliGemma 2): four norms a block, caps, windows | dropped |
| an activation other than the approximate GELU, `tie_word_embeddings` false | dropped: refused |
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerora.models.errors import inexpressible
from kerora.models.extended_layers import extend_layer
from kerora.models.set_on_layers import note_set

_APPROXIMATE_GELU = "gelu_pytorch_tanh"
# What `transformers` fills in where the published folders say nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 256},
    "gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}
_GEMMA2_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def complete_paligemma(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration, with the fields of the text model that KerasHub and kerora read."""
    text = {"model_type": "gemma", **config["text_config"]}
    text = {
        # The converter asks for it, and `head_dim` replaces what it makes of it.
        "num_image_tokens": 1,
        **_DEFAULTS.get(text["model_type"], {}),
        **text,
        # The head is the whole model's, whatever the text model alone would do.
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
    }
    return {**config, "text_config": text}


def paligemma_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the backbone's constructor that mend what its converter drops.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    text = config["text_config"]
    _check(config)
    arguments = {"head_dim": text["head_dim"], "vocabulary_size": text["vocab_size"]}
    if text["model_type"] == "gemma":
        return arguments
    window = text["sliding_window"]
    return {
        **arguments,
        "use_post_attention_norm": True,
        "use_post_ffw_norm": True,
        "attention_logit_soft_cap": text["attn_logit_softcapping"],
        "final_logit_soft_cap": text["final_logit_softcapping"],
        "use_sliding_window_attention": window is not None,
        "sliding_window_size": window,
    }


def _check(config: dict[str, Any]) -> None:
    text = config["text_config"]
    if not text["tie_word_embeddings"]:
        raise inexpressible("paligemma", "tie_word_embeddings", False, True)
    # Gemma's files say "gelu", and `transformers` takes its approximation for them all the same.
    activation = "hidden_act" if text["model_type"] == "gemma" else "hidden_activation"
    old = ("gelu",) if text["model_type"] == "gemma" else ()
    expected = (
        ("text_config", "model_type", ("gemma", "gemma2")),
        ("text_config", activation, (_APPROXIMATE_GELU, *old)),
        ("vision_config", "model_type", ("siglip_vision_model",)),
        ("vision_config", "hidden_act", (_APPROXIMATE_GELU,)),
    )
    for part, field, values in expected:
        value = config[part].get(field, values[0])
        if value not in values:
            allowed = " or ".join(map(repr, values))
            raise inexpressible("paligemma", f"{part}.{field}", value, allowed)


def mend_paligemma(backbone: keras.Model) -> None:
    """Let the tokens of a prompt see each other beyond the windows of PaliGemma 2."""
    for block in backbone.transformer_layers:
        if block.attention.use_sliding_window_attention:
            extend_layer(block.attention, PromptBeyondWindow)
            note_set(backbone, "the windows of a prompt")


class PromptBeyondWindow(keras.layers.Layer):
    """Attention whose window holds back what is read forwards, and not an image and its prompt."""

    def _mask_sliding_window(self, attention_mask: Any, cache_update_index: Any = 0) -> Any:
        owner: Any = super()
        windowed = owner._mask_sliding_window(attention_mask, cache_update_index)
        if attention_mask.shape[1] == 1:
            return windowed  # a step of generation, which reads backwards alone
        # Two tokens that see each other are both of the prompt.
        seen = ops.cast(attention_mask, "bool")
        return ops.logical_or(windowed, ops.logical_and(seen, ops.transpose(seen, (0, 2, 1))))


def load_gemma2_norms(backbone: Any, loader: Any) -> None:
    """Fill the norms of PaliGemma 2's blocks, of which KerasHub's converter knows Gemma's two."""
    if not backbone.use_post_ffw_norm:
        return
    for index, block in enumerate(backbone.transformer_layers):
        for attribute, name in _GEMMA2_NORMS.items():
            key = f"language_model.model.layers.{index}.{name}.weight"
            loader.port_weight(getattr(block, attribute).scale, key)
