"""Small random backbones of every family, for tests."""

from typing import Any

import keras
import keras_hub
import numpy as np

VOCABULARY = 50
_LLAMA: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 48,
}
_GEMMA = {**_LLAMA, "head_dim": 16}
_GEMMA3 = {**_GEMMA, "image_size": 16, "use_sliding_window_attention": True}

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("GemmaBackbone", _GEMMA),
    "gemma2": (
        "GemmaBackbone",
        {
            **_GEMMA,
            "attention_logit_soft_cap": 2.0,
            "final_logit_soft_cap": 3.0,
            "use_sliding_window_attention": True,
            "sliding_window_size": 4,
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "query_head_dim_normalize": False,
        },
    ),
    "gemma3": ("Gemma3Backbone", {**_GEMMA3, "num_layers": 6, "sliding_window_size": 4}),
    "gemma3n": (
        "Gemma3nBackbone",
        {
            "text_vocab_size": VOCABULARY,
            "text_hidden_size": 32,
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": [48, 48, 40, 48],
            "hidden_activation": "gelu_approximate",
            "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "rope_theta": 10000.0,
            "max_position_embeddings": 64,
            "vocab_size_per_layer_input": 40,
            "hidden_size_per_layer_input": 4,
            "altup_num_inputs": 3,
            "laurel_rank": 4,
        },
    ),
    "gemma4": (
        "Gemma4Backbone",
        {
            **_GEMMA,
            "image_size": 16,
            "num_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window_size": 4,
            "global_head_dim": 32,
            "global_rope_partial_rotary_factor": 0.5,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "llama": ("LlamaBackbone", _LLAMA),
    "llama3": (
        "Llama3Backbone",
        {
            **_LLAMA,
            "rope_frequency_adjustment_factor": 8.0,
            "rope_low_freq_factor": 1.0,
            "rope_high_freq_factor": 4.0,
            "rope_pretraining_sequence_length": 64,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("MistralBackbone", {**_LLAMA, "sliding_window": 4}),
    "mixtral": ("MixtralBackbone", {**_LLAMA, "sliding_window": 4, "num_experts": 3}),
    "qwen2": (
        "QwenBackbone",
        {**_LLAMA, "use_sliding_window_attention": True, "sliding_window_size": 4},
    ),
    "qwen3": ("Qwen3Backbone", {**_LLAMA, "head_dim": 16, "sliding_window_size": 4}),
    "phi3": ("Phi3Backbone", _LLAMA),
    "phi3_su": (
        "Phi3Backbone",
        {
            **_LLAMA,
            "max_sequence_length": 64,
            "pretraining_sequence_length": 32,
            "rope_scaling_type": "su",
            "rope_scaling_short_factor": [1.0, 1.1, 1.2, 1.3],
            "rope_scaling_long_factor": [2.0, 2.1, 2.2, 2.3],
        },
    ),
    "gpt_oss": ("GptOssBackbone", {**_LLAMA, "sliding_window": 4, "num_experts": 3}),
    "smollm3": (
        "SmolLM3Backbone",
        {
            "vocabulary_size": VOCABULARY,
            "hidden_dim": 32,
            "intermediate_dim": 48,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_layer_enabled_list": [True, False],
            "layer_types": ["full_attention", "full_attention"],
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 64,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
    ),
    "qwen_moe": (
        "QwenMoeBackbone",
        {
            **_LLAMA,
            "moe_intermediate_dim": 16,
            "shared_expert_intermediate_dim": 16,
            "num_experts": 3,
            "top_k": 2,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeBackbone",
        {**_LLAMA, "head_dim": 16, "moe_intermediate_dim": 16, "num_experts": 3, "top_k": 2},
    ),
    "gpt_neo_x": (
        "GPTNeoXBackbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 32,
            "intermediate_dim": 48,
        },
    ),
    "bloom": (
        "BloomBackbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 32,
            "intermediate_dim": 48,
        },
    ),
    "gpt2": (
        "GPT2Backbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 32,
            "intermediate_dim": 48,
            "max_sequence_length": 32,
        },
    ),
    "opt": (
        "OPTBackbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 32,
            "intermediate_dim": 48,
            "max_sequence_length": 32,
        },
    ),
    "falcon": (
        "FalconBackbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "num_attention_heads": 4,
            "hidden_dim": 32,
            "intermediate_dim": 48,
        },
    ),
}


def tiny_backbone(family: str, dtype: str = "float32", seed: int = 0, **overrides: Any) -> Any:
    """A backbone of `family` whose weights are all random, biases and sinks too."""
    class_name, config = BACKBONES[family]
    backbone_class = getattr(keras_hub.models, class_name)
    backbone = backbone_class(**{**config, **overrides}, dtype=dtype)
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    for weight in backbone.weights:
        if weight.trainable:
            spread = 0.3 if len(weight.shape) > 1 else 0.5
            center = float(keras.ops.convert_to_numpy(weight).mean())
            weight.assign(rng.normal(center, spread, weight.shape))
    return backbone
