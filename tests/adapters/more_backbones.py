"""Small backbones of the families that `tiny_backbones` leaves out, towers for images included."""

from collections.abc import Callable
from typing import Any

from keras_hub import models

_COMMON: dict[str, Any] = {"vocabulary_size": 50, "num_layers": 2}
_HEADS: dict[str, Any] = {"num_query_heads": 4, "num_key_value_heads": 2}
_QWEN35: dict[str, Any] = {
    **_COMMON,
    **_HEADS,
    "hidden_dim": 16,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
_VISION: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "pool_size": 2,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "output_dim": 8,
}
_GEMMA: dict[str, Any] = {
    **_COMMON,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "head_dim": 4,
}


def _gemma3_with_images() -> Any:
    tower = models.Gemma3VisionEncoder(**_VISION)
    return models.Gemma3Backbone(image_size=16, vision_encoder=tower, **_GEMMA)


def _gemma4_with_images() -> Any:
    tower = models.Gemma4VisionEncoder(**_VISION, head_dim=4, num_key_value_heads=2)
    return models.Gemma4Backbone(image_size=16, vision_encoder=tower, **_GEMMA)


def _pali_gemma() -> Any:
    return models.PaliGemmaBackbone(
        image_size=16,
        vit_patch_size=4,
        vit_num_layers=1,
        vit_num_heads=2,
        vit_hidden_dim=8,
        vit_intermediate_dim=16,
        **_GEMMA,
    )


def _rwkv7() -> Any:
    return models.RWKV7Backbone(
        hidden_size=16,
        head_size=4,
        intermediate_dim=32,
        gate_lora=8,
        mv_lora=8,
        aaa_lora=8,
        decay_lora=8,
        **_COMMON,
    )


def _blip2() -> Any:
    heads = {"num_layers": 1, "num_heads": 2}
    return models.BLIP2Backbone(
        vision_encoder=models.BLIP2VisionEncoder(
            image_size=16,
            patch_size=4,
            hidden_dim=8,
            intermediate_dim=16,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
            **heads,
        ),
        qformer=models.BLIP2QFormer(
            num_query_tokens=2,
            hidden_dim=4,
            intermediate_dim=8,
            vision_dim=8,
            cross_attention_frequency=1,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
            **heads,
        ),
        language_model=models.BLIP2CustomOPT(
            vocabulary_size=14,
            hidden_dim=4,
            intermediate_dim=8,
            num_query_tokens=2,
            qformer_hidden_dim=4,
            max_sequence_length=10,
            dropout=0.0,
            language_projection=None,
            **heads,
        ),
    )


def _parseq() -> Any:
    tower = models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=(4, 8),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        use_class_token=False,
        name="image_encoder",
    )
    return models.PARSeqBackbone(
        image_encoder=tower,
        vocabulary_size=20,
        max_label_length=5,
        decoder_hidden_dim=8,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=16,
    )


MORE_BACKBONES: dict[str, Callable[[], Any]] = {
    "qwen3_5": lambda: models.Qwen3_5Backbone(intermediate_dim=32, **_QWEN35),
    "qwen3_5_moe": lambda: models.Qwen3_5MoeBackbone(
        moe_intermediate_dim=8, shared_expert_intermediate_size=8, num_experts=4, top_k=2, **_QWEN35
    ),
    "gemma3_images": _gemma3_with_images,
    "gemma4": lambda: models.Gemma4Backbone(image_size=16, **_GEMMA),
    "gemma4_images": _gemma4_with_images,
    "pali_gemma": _pali_gemma,
    "rwkv7": _rwkv7,
    "blip2": _blip2,
    "parseq": _parseq,
}
