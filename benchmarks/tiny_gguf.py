"""Tiny `transformers` models as GGUF files, written with the `gguf` package, for tests."""

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.tiny_gguf_tensors import F32, add_weights
from benchmarks.tiny_transformers import tiny_transformers

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "gemma4_text": "gemma4",
    "gemma3n_text": "gemma3n",
}


def tiny_gguf(
    name: str,
    path: Path,
    kind: gguf.GGMLQuantizationType = F32,
    vocabulary: dict[str, Any] | None = None,
    **overrides: Any,
) -> Any:
    """Write a tiny model of `tiny_transformers` as a GGUF file.

    Returns:
        The `transformers` model, whose weights are those of the file after quantisation.
    """
    model = tiny_transformers(name, path.parent / f"{path.stem}-hf", **overrides)
    config = copy.deepcopy(model.config)
    config.allow_global_per_layer_attribute_access = True  # Gemma 4's layers differ
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    _add_metadata(writer, config, arch)
    if arch == "gemma4":
        _add_gemma4(writer, config, model)
    if arch == "gemma3n":
        _add_gemma3n(writer, config)
    for key, value in (vocabulary or {}).items():
        if value is None:
            continue
        _add_field(writer, f"tokenizer.{key}", value)
    add_weights(writer, model, arch, kind)
    rotary = model.model.rotary_emb
    if getattr(rotary, "rope_type", None) == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(
            np.arange(0, 2 * len(rotary.inv_freq), 2) / (2 * len(rotary.inv_freq))
        )
        divisors = plain / rotary.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", divisors.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_metadata(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(_feed_forward_length(config))
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch != "gemma4":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch in ("llama", "smollm3"):
        writer.add_rope_dimension_count(head_dim)
    if arch.startswith("qwen35"):
        _add_linear_attention(writer, config)
    if arch in ("gemma2", "gemma3", "gemma3n", "gemma4"):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "num_experts_per_tok", None) is not None:
        _add_experts(writer, config)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch in ("gemma3n", "gemma4"):
        writer.add_shared_kv_layers(config.num_kv_shared_layers)
        writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
        writer.add_sliding_window_pattern(
            [kind == "sliding_attention" for kind in config.layer_types]
        )


def _add_gemma4(writer: gguf.GGUFWriter, config: Any, model: Any) -> None:
    full = model.model.layers[-1].self_attn
    for length, suffix in ((full.head_dim, ""), (config.head_dim, "_swa")):
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            writer.add_uint32(f"gemma4.{key}{suffix}", length)
    if config.attention_k_eq_v:
        heads = [full.k_proj.out_features // full.head_dim, config.num_key_value_heads]
        sliding = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_head_count_kv([heads[has_window] for has_window in sliding])
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    rope = config.rope_parameters["full_attention"]
    turning = int(full.head_dim * rope["partial_rotary_factor"] / 2)
    divisors = [1.0] * turning + [1e30] * (full.head_dim // 2 - turning)
    writer.add_tensor("rope_freqs.weight", np.array(divisors, "float32"))


def _add_gemma3n(writer: gguf.GGUFWriter, config: Any) -> None:
    import torch

    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    shares = torch.tensor(config.activation_sparsity_pattern)
    quantiles = torch.distributions.Normal(0, 1).icdf(shares)
    writer.add_activation_sparsity_scale(quantiles.tolist())


def _add_linear_attention(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * config.head_dim))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def _feed_forward_length(config: Any) -> int | list[int]:
    inner, layers = config.intermediate_size, config.num_hidden_layers
    if not getattr(config, "use_double_wide_mlp", False):
        return inner
    shared = config.num_kv_shared_layers
    return [inner] * (layers - shared) + [2 * inner] * shared


def _add_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    count = getattr(config, "num_local_experts", None) or config.num_experts
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_string(key, value)
