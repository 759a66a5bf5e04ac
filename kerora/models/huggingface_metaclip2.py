"""What KerasHub's MetaCLIP 2 leaves out of a Hugging Face configuration, and how it is mended.

KerasHub takes the epsilon of all norms and the number of the token that ends a text for fixed, and
asks for fields that a folder may leave out.
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.adapters.targets import sublayers
from kerora.models.errors import inexpressible
from kerora.models.set_on_layers import set_on_layer

# What `transformers` fills in.
_DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VISION_DEFAULTS: dict[str, Any] = {
    **_DEFAULTS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT_DEFAULTS: dict[str, Any] = {
    **_DEFAULTS,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
# Keras has others by the same names that are not the same (`leaky_relu`).
_ACTIVATIONS = ("quick_gelu", "gelu")


def complete_metaclip2(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with every field that is read of it.

    Args:
        config: The `config.json` of a Hugging Face folder; left as it is.
    """
    return {
        **config,
        # Without it KerasHub would take an encoder's, which counts where that encoder is alone.
        "projection_dim": config.get("projection_dim", 512),
        "vision_config": {**_VISION_DEFAULTS, **(config.get("vision_config") or {})},
        "text_config": {**_TEXT_DEFAULTS, **(config.get("text_config") or {})},
    }


def check_metaclip2(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's MetaCLIP 2 cannot compute.

    Args:
        config: A configuration that `complete_metaclip2` gave.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    for part in ("vision_config", "text_config"):
        activation = config[part]["hidden_act"]
        if activation not in _ACTIVATIONS:
            expected = " or ".join(map(repr, _ACTIVATIONS))
            raise inexpressible("metaclip_2", f"{part}.hidden_act", activation, expected)
        # An older way to give the same fields, which `transformers` prefers.
        if config.get(f"{part}_dict") is not None:
            field = f"{part}_dict"
            raise inexpressible("metaclip_2", field, config[field], f"its fields in `{part}`")
    channels = config["vision_config"]["num_channels"]
    if channels != 3:
        raise inexpressible("metaclip_2", "vision_config.num_channels", channels, 3)
    end = config["text_config"]["eos_token_id"]
    if type(end) is not int or abs(end) >= 2**31:
        expected = "a whole number of 32 bits"
        raise inexpressible("metaclip_2", "text_config.eos_token_id", end, expected)


def mend_metaclip2(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Let the layers of a MetaCLIP 2 backbone compute what `transformers` does.

    Args:
        backbone: A `keras_hub.models.MetaCLIP2Backbone` that was built for `config`.
        config: A configuration that `complete_metaclip2` gave.
    """
    vision, text = config["vision_config"], config["text_config"]
    set_on_layer(backbone, backbone.vision_post_layer_norm, "epsilon", vision["layer_norm_eps"])
    for encoder, fields in ((backbone.vision_encoder, vision), (backbone.text_encoder, text)):
        for layer, _ in sublayers(encoder):
            if isinstance(layer, keras.layers.LayerNormalization):
                set_on_layer(backbone, layer, "epsilon", fields["layer_norm_eps"])
    set_on_layer(backbone, backbone.text_pooler, "eos_token_id", text["eos_token_id"])
