"""What KerasHub's T5Gemma leaves out of a Hugging Face configuration, and how it is mended.

KerasHub's encoder has no sliding window, and its decoder's is one token wider than that of
`transformers`. Both read most of their fields from the decoder's configuration alone.
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.models.errors import inexpressible
from kerora.models.extended_layers import extend_layer
from kerora.models.set_on_layers import note_set, set_on_layer

# The fields that KerasHub has one value for, the decoder's, with the defaults of `transformers`.
_SHARED = {
    "vocab_size": 256_000,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
}
_SLIDING = "sliding_attention"


def check_t5gemma(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's T5Gemma cannot compute.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    encoder, decoder = config["encoder"], config["decoder"]
    for field, default in _SHARED.items():
        theirs, ours = encoder.get(field, default), decoder.get(field, default)
        if theirs != ours:
            raise inexpressible("t5gemma", f"encoder.{field}", theirs, f"{ours!r}, the decoder's")
    if _rope_theta(encoder) != _rope_theta(decoder):
        raise inexpressible(
            "t5gemma", "encoder.rope_theta", _rope_theta(encoder), _rope_theta(decoder)
        )
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        kind = (part.get("rope_parameters") or {}).get("rope_type", "default")
        if kind != "default":
            raise inexpressible("t5gemma", f"{name}.rope_type", kind, "'default'")
    if not config.get("tie_word_embeddings", True):
        raise inexpressible("t5gemma", "tie_word_embeddings", False, True)


def mend_t5gemma(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Give the layers of a T5Gemma backbone the windows that `transformers` gives them.

    Args:
        backbone: A `keras_hub.models.T5GemmaBackbone` that was built for `config`.
        config: The `config.json` of a Hugging Face folder.
    """
    for layer in backbone.encoder_layers:
        if layer.layer_type == _SLIDING:
            attention: Any = layer.self_attn
            extend_layer(attention, _Window)
            attention.window = config["encoder"]["sliding_window"]
            note_set(backbone, "sliding_window")
    for layer in backbone.decoder_layers:
        if layer.layer_type == _SLIDING:
            # Its mask lets a token see one more token before it than the window counts.
            window = config["decoder"]["sliding_window"] - 1
            set_on_layer(backbone, layer, "sliding_window", window)


def _rope_theta(part: dict[str, Any]) -> float:
    # transformers 5 writes `rope_parameters`; older versions `rope_theta`.
    rope = part.get("rope_parameters") or {}
    return rope.get("rope_theta", part.get("rope_theta", 10_000.0))


class _Window(keras.layers.Layer):
    """What an encoder's attention has beside its own class: tokens see those within `window`."""

    window: int

    def call(self, inputs, attention_mask=None, **kwargs):
        positions = keras.ops.arange(keras.ops.shape(inputs)[1])
        distance = keras.ops.abs(positions[:, None] - positions[None, :])
        outside = keras.ops.cast(distance > self.window, attention_mask.dtype)
        return super().call(inputs, attention_mask=attention_mask - outside * 1e9, **kwargs)
