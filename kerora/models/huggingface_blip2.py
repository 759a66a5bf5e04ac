"""BLIP-2 as `transformers` computes it: an image's query tokens before those of a text.

| field | what KerasHub's converter makes of it |
|---|---|
| the type of the weights that was asked for | dropped: its parts get Keras' own |
| `feed_forward_proj` `gated-gelu` of Flan-T5, an approximation | taken as the exact GELU |
| a Flan-T5's head that is stored once, with its table | asked for, and missing |
| activations, and what else OPT, T5 and the Q-Former have in variants | dropped: refused |
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.models.errors import inexpressible
from kerora.models.set_on_layers import note_set

# What KerasHub's layers compute, which are the defaults of `transformers` but for T5.
_VISION = {"hidden_act": "gelu", "qkv_bias": True}
_QFORMER = {"hidden_act": "gelu", "use_qformer_text_input": False}
_TEXT: dict[str, dict[str, Any]] = {
    "opt": {
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
        "tie_word_embeddings": True,
    },
    "t5": {
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "scale_decoder_outputs": False,
    },
}


def check_blip2(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's BLIP-2 cannot compute.

    Raises:
        ModelSourceError: If the configuration holds such a value; names the field.
    """
    text = config["text_config"]
    kind = text.get("model_type")
    if kind not in _TEXT:
        raise inexpressible("blip-2", "text_config.model_type", kind, "'opt' or 't5'")
    if kind == "t5":
        # What `transformers` takes them for where they are left out.
        tied = text.get("tie_word_embeddings") is not False
        text = {"feed_forward_proj": "relu", "scale_decoder_outputs": tied, **text}
        same = {"num_decoder_layers": text["num_layers"]}
    else:
        same = {"word_embed_proj_dim": text["hidden_size"]}
    for part, fields, expected in (
        ("vision_config", config["vision_config"], _VISION),
        ("qformer_config", config["qformer_config"], _QFORMER),
        ("text_config", text, {**_TEXT[kind], **same}),
    ):
        for field, value in expected.items():
            if fields.get(field, value) not in (value, None):
                raise inexpressible("blip-2", f"{part}.{field}", fields[field], repr(value))


def mend_blip2(backbone: Any) -> None:
    """Give a Flan-T5 the GELU that `transformers` gives it, and its head weights."""
    language_model = backbone.language_model
    if not hasattr(language_model, "t5"):
        return
    t5 = language_model.t5
    for layer in (*t5.encoder_transformer_layers, *t5.decoder_transformer_layers):
        layer.input_projector.activation = _approximate_gelu
    note_set(backbone, "dense_act_fn")
    if not language_model.lm_head.built:
        language_model.lm_head.build((None, None, language_model.hidden_dim))


def _approximate_gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)
