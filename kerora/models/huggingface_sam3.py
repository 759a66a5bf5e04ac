"""SAM 3's detector as `transformers` computes it.

| field | what KerasHub's converter makes of it |
|---|---|
| the order of the tokens of a text | read in both directions, where CLIP reads forwards |
| no boxes | a token for boxes is attended to all the same |
| the label of a box | read as whether there is a box, so that one of label 0 is left out |
| parts of a box beyond the image | what is at its edge (JAX, TensorFlow), in place of zeros |
| the number of the image in a batch, beside a box | read; the box's own row counts here |
| `layer_norm_eps` of the text encoder | dropped within its layers |
| that of what follows the encoders | heeded, where `transformers` has 1e-5 whatever it says |
| the type of the weights that was asked for | dropped by what is outside the parts |
| a folder of the detector alone (`sam3`) | unknown: it reads that of a video model, `sam3_video` |

A video model's tracker is nothing that KerasHub has: its tensors are left out.
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.adapters.targets import sublayers
from kerora.models.errors import inexpressible
from kerora.models.extended_layers import extend_layer
from kerora.models.sam3_layers import ForwardText, PromptsOfBoxes
from kerora.models.set_on_layers import note_set

# What `transformers` fills in.
_NORM = 1e-5
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "relu",
    "hidden_dropout": 0.0,
    "layer_norm_eps": 1e-6,
}
_DETR = {**_TRANSFORMER, "num_layers": 6, "dropout": 0.1}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vision_config": {
        "backbone_config": None,
        "fpn_hidden_size": 256,
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
    },
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "geometry_encoder_config": {**_TRANSFORMER, "num_layers": 3, "roi_size": 7},
    "detr_encoder_config": _DETR,
    "detr_decoder_config": {**_DETR, "num_queries": 200},
    "mask_decoder_config": {
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_upsampling_stages": 3,
        "layer_norm_eps": 1e-6,
    },
}
_BACKBONE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4736,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 1008,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "window_size": 24,
    "global_attn_indexes": [7, 15, 23, 31],
    "pretrain_image_size": 336,
}
# The text encoder of a folder that says nothing of it.
_TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
}
# Of the same name and meaning in Keras.
_ACTIVATIONS = ("gelu", "relu", "silu")
_THETA = 10_000.0


def complete_sam3(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as that of a video model, with every field that is read of it.

    Args:
        config: The `config.json` of a Hugging Face folder, of type `sam3` or `sam3_video`; left as
            it is.
    """
    is_video = config["model_type"] == "sam3_video"
    given = (config.get("detector_config") or {}) if is_video else config
    parts = {name: _filled(fields, given.get(name)) for name, fields in _DEFAULTS.items()}
    if given.get("text_config") is None:
        parts["text_config"] |= _TEXT
    vision = parts["vision_config"]
    vision["backbone_config"] = backbone = _filled(_BACKBONE, vision["backbone_config"])
    rope = backbone.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or backbone.get("rope_theta") or _THETA
    backbone["rope_parameters"] = {"rope_type": "axial", **rope, "rope_theta": theta}
    return {
        "model_type": "sam3_video",
        "architectures": config.get("architectures"),
        "detector_config": parts,
    }


def _filled(defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    said = {name: value for name, value in (given or {}).items() if value is not None}
    return {**defaults, **said}


def check_sam3(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's SAM 3 cannot compute.

    Args:
        config: A configuration that `complete_sam3` gave.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    detector = config["detector_config"]
    backbone = detector["vision_config"]["backbone_config"]
    activated = {
        "vision_config.backbone_config": backbone,
        **{name: part for name, part in detector.items() if "hidden_act" in _DEFAULTS[name]},
    }
    for name, part in activated.items():
        if part["hidden_act"] not in _ACTIVATIONS:
            expected = " or ".join(map(repr, _ACTIVATIONS))
            raise inexpressible("sam3", f"{name}.hidden_act", part["hidden_act"], expected)
    kind = backbone["rope_parameters"]["rope_type"]
    if kind != "axial":
        raise inexpressible("sam3", "rope_type", kind, "'axial'")
    if backbone["num_channels"] != 3:
        field = "vision_config.backbone_config.num_channels"
        raise inexpressible("sam3", field, backbone["num_channels"], 3)


def mend_sam3(backbone: Any, config: dict[str, Any]) -> None:
    """Let the layers of a SAM 3 detector compute what `transformers` does.

    Args:
        backbone: A `keras_hub.models.SAM3PromptableConceptBackbone` that was built for `config`.
        config: A configuration that `complete_sam3` gave.
    """
    extend_layer(backbone.text_encoder, ForwardText)
    extend_layer(backbone.geometry_encoder, PromptsOfBoxes)
    note_set(backbone, "the mask of texts", "prompts of boxes", "layer_norm_eps")
    _set_norms(backbone.text_encoder, config["detector_config"]["text_config"]["layer_norm_eps"])
    for part in (
        backbone.geometry_encoder,
        backbone.detr_encoder,
        backbone.detr_decoder,
        backbone.mask_decoder,
        backbone.dot_product_scoring,
    ):
        _set_norms(part, _NORM)


def _set_norms(part: keras.layers.Layer, epsilon: float) -> None:
    for layer, _ in sublayers(part):
        if isinstance(layer, keras.layers.LayerNormalization):
            layer.epsilon = epsilon
