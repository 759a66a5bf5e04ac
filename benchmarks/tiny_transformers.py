"""Tiny random `transformers` models, saved as Hugging Face folders."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny_encoders import ENCODERS, IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_sam3 import DETECTORS, stand_in_for_torchvision
from benchmarks.tiny_seeing import SEEING

_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Far from every default, so that a field that is dropped shows.
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE_HEADS = {**_SHAPE, "head_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
}
_GEMMA2 = {**_WIDE_HEADS, "sliding_window": 4, "query_pre_attn_scalar": 16}
_GEMMA3 = {**_GEMMA2, "num_hidden_layers": 7}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 7,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 40}
_GEMMA4 = {
    **_WIDE_HEADS,
    "num_hidden_layers": 6,
    "sliding_window": 4,
    "global_head_dim": 32,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
}
_GEMMA3N = {
    **_WIDE_HEADS,
    # The last eight are those of images and sounds.
    "vocab_size": 72,
    "vocab_size_per_layer_input": 60,
    "num_hidden_layers": 6,
    "intermediate_size": [48, 40, 48, 48, 40, 48],
    "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0, 0.3, 0.0],
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 4,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 3,
    "altup_active_idx": 1,
    "laurel_rank": 5,
    "final_logit_softcapping": 9.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        "full_attention": {"rope_type": "default", "rope_theta": 9000.0},
    },
}
_QWEN3_5 = {
    **_WIDE_HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # llama.cpp refuses sections that are longer than a head.
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
    },
}
_GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_GPT_OSS = {**_WIDE_HEADS, **_EXPERTS, "sliding_window": 4, "rope_parameters": _YARN}
_BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
# The layers of either kind differ from encoder to decoder in what they can differ in.
_T5GEMMA2 = {**_GEMMA2, "query_pre_attn_scalar": 20}
_T5GEMMA2_ENCODER = {
    **_T5GEMMA2,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": _GEMMA3_ROPE,
}
_T5GEMMA2_DECODER = {
    **_T5GEMMA2,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
        "full_attention": _ROPE,
    },
}
_T5GEMMA = {**_GEMMA2, "query_pre_attn_scalar": 20, "rope_parameters": _ROPE}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SHAPE, "rope_parameters": _ROPE}),
    "llama31_tied": (
        "LlamaConfig",
        {**_SHAPE, "tie_word_embeddings": True, "rope_parameters": _LLAMA31_ROPE},
    ),
    "mistral": ("MistralConfig", {**_WIDE_HEADS, "sliding_window": 4}),
    "mistral_tied": (
        "MistralConfig",
        {**_SHAPE, "sliding_window": None, "tie_word_embeddings": True},
    ),
    "qwen2": ("Qwen2Config", _SHAPE),
    "qwen2_tied": ("Qwen2Config", {**_SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _WIDE_HEADS),
    "gemma": ("GemmaConfig", {**_WIDE_HEADS, "rope_parameters": _ROPE}),
    "gemma2": ("Gemma2Config", _GEMMA2),
    "gemma2_scaled": ("Gemma2Config", {**_GEMMA2, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", _GEMMA3),
    "gemma3_scaled": (
        "Gemma3TextConfig",
        {**_GEMMA3, "query_pre_attn_scalar": 8, "rope_parameters": _GEMMA3_ROPE},
    ),
    # None of the tokens that are compared stands for an image.
    "gemma3_vision": (
        "Gemma3Config",
        {
            "text_config": _GEMMA3,
            "vision_config": {**_TOWER, "image_size": 28},
            "mm_tokens_per_image": 1,
            "image_token_index": 61,
        },
    ),
    "gemma3n": ("Gemma3nTextConfig", _GEMMA3N),
    "gemma3n_vision": (
        "Gemma3nConfig",
        {
            "text_config": _GEMMA3N,
            "vision_config": {"hidden_size": 16, "vocab_size": 4, "vocab_offset": 64},
            "audio_config": {
                "hidden_size": 16,
                "conf_num_hidden_layers": 1,
                "conf_num_attention_heads": 2,
                "vocab_size": 4,
                "vocab_offset": 68,
            },
            "image_token_id": 64,
            "audio_token_id": 68,
        },
    ),
    "gemma4": ("Gemma4TextConfig", _GEMMA4),
    "gemma4_vision": (
        "Gemma4Config",
        {
            "text_config": _GEMMA4,
            "vision_config": {**_TOWER, "num_key_value_heads": 2, "head_dim": 8},
            "audio_config": None,
            "image_token_id": 61,
            "video_token_id": 60,
            "audio_token_id": 59,
        },
    ),
    "mixtral": ("MixtralConfig", {**_SHAPE, **_EXPERTS, "sliding_window": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_SHAPE, **_QWEN_EXPERTS, **_SHARED_EXPERT}),
    "qwen2_moe_tied": (
        "Qwen2MoeConfig",
        {**_SHAPE, **_QWEN_EXPERTS, **_SHARED_EXPERT, "tie_word_embeddings": True},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_WIDE_HEADS, **_QWEN_EXPERTS, "norm_topk_prob": True}),
    "qwen3_5": ("Qwen3_5TextConfig", _QWEN3_5),
    "qwen3_5_vision": (
        "Qwen3_5Config",
        {
            "text_config": _QWEN3_5,
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 32,
                "patch_size": 7,
                "num_position_embeddings": 16,
            },
            "image_token_id": 61,
            "video_token_id": 60,
            "vision_start_token_id": 59,
            "vision_end_token_id": 58,
        },
    ),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", {**_QWEN3_5, **_QWEN_EXPERTS, **_SHARED_EXPERT}),
    "smollm3": (
        "SmolLM3Config",
        {**_SHAPE, "num_hidden_layers": 4, "tie_word_embeddings": True, "rope_parameters": _ROPE},
    ),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_oss": ("GptOssConfig", _GPT_OSS),
}
# Loaded as backbones alone, as encoders are.
SEQUENCE_TO_SEQUENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartConfig", _BART),
    "t5gemma": (
        "T5GemmaConfig",
        {
            "vocab_size": 64,
            "encoder": {**_T5GEMMA, "hidden_size": 40, "num_hidden_layers": 3},
            "decoder": _T5GEMMA,
        },
    ),
    # One of the tokens that are compared ends an image.
    "t5gemma2": (
        "T5Gemma2Config",
        {
            "encoder": {
                "text_config": _T5GEMMA2_ENCODER,
                "vision_config": {**_TOWER, "image_size": 28},
                "mm_tokens_per_image": 1,
                "eoi_token_index": 28,
            },
            "decoder": _T5GEMMA2_DECODER,
            "image_token_index": 61,
        },
    ),
}
# Where larger weights would show how float32 rounds: a T5 divides its scores by nothing, and SAM 3
# norms nothing that it makes its masks of.
_SPREAD = {"blip2_t5": 0.15, "sam3": 0.15}
IDS = np.arange(20)[None] * 7 % 64


def tiny_transformers(name: str, folder: Path, **overrides: Any) -> Any:
    """A `transformers` model whose weights are all random, saved to `folder`.

    Args:
        name: A key of `MODELS`, `SEEING`, `DETECTORS` or `SEQUENCE_TO_SEQUENCE`, or of a table of
            `tiny_encoders`.
        folder: Where to save it.
        **overrides: Fields of its configuration to change.
    """
    import torch
    import transformers

    encoders = {**ENCODERS, **IMAGE_ENCODERS, **IMAGE_TEXT_ENCODERS}
    families = {**MODELS, **encoders, **SEEING, **DETECTORS, **SEQUENCE_TO_SEQUENCE}
    config_class, fields = families[name]
    config = getattr(transformers, config_class)(
        **{**fields, **overrides}, attn_implementation="eager"
    )
    if name == "gemma3n_vision":
        _stand_in_for_timm()
    if name in DETECTORS:
        stand_in_for_torchvision()
    torch.manual_seed(0)
    model = _automatic_class(name).from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Norms of Gemma count from zero, those of the others from one.
            offset = 1.0 if weight.ndim == 1 and weight.mean() > 0.5 else 0.0
            spread = _SPREAD.get(name, 0.3)
            weight.copy_(torch.randn_like(weight) * spread + offset)
        for index, (scalar_name, scalar) in enumerate(model.named_buffers()):
            if scalar_name.endswith("layer_scalar"):
                scalar.fill_(0.7 + 0.1 * (index % 7))
    model.save_pretrained(folder)
    return model


def _automatic_class(name: str) -> Any:
    import transformers

    if name in {**ENCODERS, **IMAGE_ENCODERS, **IMAGE_TEXT_ENCODERS, **DETECTORS}:
        return transformers.AutoModel
    if name in SEQUENCE_TO_SEQUENCE:
        return transformers.AutoModelForSeq2SeqLM
    if name.endswith("_vision") or name in SEEING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _stand_in_for_timm() -> None:
    # Gemma 3n's tower for images comes from timm, which nothing else needs; text never sees it.
    import torch
    import transformers

    vision_config = transformers.Gemma3nConfig.sub_configs["vision_config"]

    class Tower(transformers.PreTrainedModel):
        config_class = vision_config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.timm_model = torch.nn.Linear(config.hidden_size, config.hidden_size)
            self.post_init()

    transformers.AutoModel.register(vision_config, Tower, exist_ok=True)
