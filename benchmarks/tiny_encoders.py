"""What `tiny_transformers` makes encoders of, for texts and for images."""

from typing import Any

import numpy as np

_ENCODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 1,
}
_IMAGE_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "layer_norm_eps": 1e-3,
}
_DINOV2 = {name: _IMAGE_ENCODER[name] for name in _IMAGE_ENCODER if name != "intermediate_size"}
_DINOV2 |= {"mlp_ratio": 2}
# Loaded as backbones alone; their hidden states are what is compared.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _ENCODER),
    "roberta": ("RobertaConfig", _ENCODER),
    "xlm_roberta": ("XLMRobertaConfig", _ENCODER),
    "albert": ("AlbertConfig", {**_ENCODER, "embedding_size": 16}),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    # One of the tokens that are compared is masked.
    "esm": (
        "EsmConfig",
        {
            **_ENCODER,
            "mask_token_id": 5,
            "token_dropout": True,
            "position_embedding_type": "rotary",
            "rope_theta": 500.0,
        },
    ),
}
# They take images.
IMAGE_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTConfig", _IMAGE_ENCODER),
    "deit": ("DeiTConfig", _IMAGE_ENCODER),
    "dinov2": ("Dinov2Config", _DINOV2),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", {**_DINOV2, "num_register_tokens": 2}),
    # Between the sizes of its layers lie rounded thirds.
    "dinov2_swiglu": ("Dinov2Config", {**_DINOV2, "use_swiglu_ffn": True}),
    "dinov3": (
        "DINOv3ViTConfig",
        {**_IMAGE_ENCODER, "num_register_tokens": 2, "use_gated_mlp": True, "rope_theta": 50.0},
    ),
    # The windows of the first stage are shifted; the second has one.
    "swin": (
        "SwinConfig",
        {
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 2,
            "mlp_ratio": 2.0,
            "image_size": 28,
            "patch_size": 7,
            "layer_norm_eps": 1e-3,
        },
    ),
}
# They compare images with texts, and either encoder has sizes of its own.
IMAGE_TEXT_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "metaclip_2": (
        "MetaClip2Config",
        {
            "vision_config": {
                **_IMAGE_ENCODER,
                "hidden_size": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "hidden_act": "gelu",
                "projection_dim": 20,
            },
            # One of the tokens that are compared ends the text.
            "text_config": {
                **_ENCODER,
                "layer_norm_eps": 1e-2,
                "bos_token_id": 0,
                "eos_token_id": 63,
            },
            "projection_dim": 20,
        },
    ),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype("float32")
