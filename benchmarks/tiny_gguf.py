"""Tiny `transformers` models as GGUF files, written with the `gguf` package, for tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.tiny_transformers import tiny_transformers

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
F32 = gguf.GGMLQuantizationType.F32


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
    config = model.config
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    _add_metadata(writer, config, arch)
    for key, value in (vocabulary or {}).items():
        if value is None:
            continue
        _add_field(writer, f"tokenizer.{key}", value)
    _add_weights(writer, model, arch, kind)
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


def _add_weights(
    writer: gguf.GGUFWriter, model: Any, arch: str, kind: gguf.GGMLQuantizationType
) -> None:
    import torch

    number = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for hf_name, parameter in _parameters(model):
        value = parameter.numpy().copy()
        found = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if arch.startswith("gemma") and found.endswith("norm.weight"):
            value = value + 1
        is_permuted = arch == "llama" and hf_name.split(".")[-2] in ("q_proj", "k_proj")
        if is_permuted:
            value = _permuted(value, model)
        # As llama.cpp has it: a router stays as it is, and a shared expert's is a vector.
        used = kind if value.ndim > 1 and "ffn_gate_inp" not in found else F32
        if "ffn_gate_inp_shexp" in found:
            value = value[0]
        data = gguf.quantize(value, used)
        writer.add_tensor(found, data, raw_dtype=used)
        if used != F32:
            back = gguf.dequantize(data, used)
            parameter.copy_(torch.from_numpy(_unpermuted(back, model) if is_permuted else back))


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and values, which are the model's own; of experts those that GGUF stacks."""
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith("experts.gate_up_proj"):
            gate, up = value.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        else:
            yield name.replace("experts.down_proj", "experts.down_proj.weight"), value


def _add_metadata(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if arch == "gemma3":
        _add_field(writer, "gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "num_experts_per_tok", None) is not None:
        _add_experts(writer, config)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


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


def _permuted(value: np.ndarray, model: Any) -> np.ndarray:
    # As llama.cpp's converter does for Llama: halves of a head become neighbouring pairs.
    head_dim = model.model.layers[0].self_attn.head_dim
    heads = value.shape[0] // head_dim
    return value.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)


def _unpermuted(value: np.ndarray, model: Any) -> np.ndarray:
    head_dim = model.model.layers[0].self_attn.head_dim
    heads = value.shape[0] // head_dim
    return value.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(value.shape)
