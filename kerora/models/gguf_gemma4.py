"""Gemma 4 in a GGUF file: layers of full attention have longer heads, and rotate a part of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kerora.models.gguf_experts import expert_counts, has_experts
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_later_gemma import (
    FULL,
    SLIDING,
    later_gemma_block_shapes,
    later_gemma_fields,
    rotary_fields,
    shares_keys,
)
from kerora.models.gguf_metadata import Metadata

_ROPE_FACTORS = "rope_freqs.weight"
# What a layer has beside its feed-forward layer in a mixture of experts, by Hugging Face name.
_EXPERTS = {
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
_NEVER_TURNS = 1e20  # The converter divides a frequency by 1e30 that is to be none.


def gemma4_fields(file: GGUFFile, metadata: Metadata, layers: int) -> dict[str, Any]:
    """The fields of a Hugging Face config that are Gemma 4's own.

    Args:
        file: A GGUF file.
        metadata: Its metadata.
        layers: Number of layers, which tensors of the file have shown to be there.

    Raises:
        ModelSourceError: If a value is missing or wrong, or KerasHub's layers cannot have it.
    """
    fields = later_gemma_fields(file, metadata, layers)
    if fields["layer_types"][-1] != FULL:
        raise file.error("its last layer has no full attention, as every Gemma 4's has")
    for kind in ("", "_swa"):
        length = metadata.size(f"attention.key_length{kind}")
        for key in ("attention.value_length", "rope.dimension_count"):
            if metadata.size(f"{key}{kind}", length) != length:
                raise file.error(f"its `{key}{kind}` is not the {length} of its keys")
    fields |= {
        "head_dim": metadata.size("attention.key_length_swa"),
        "global_head_dim": metadata.size("attention.key_length"),
        "final_logit_softcapping": metadata.optional_number("final_logit_softcapping"),
    }
    fields |= _key_heads(file, metadata, fields["layer_types"])
    fields |= _feed_forward(file, metadata, layers, fields["num_kv_shared_layers"])
    if has_experts(metadata):
        count, used = expert_counts(file, metadata)
        fields |= {"enable_moe_block": True, "num_experts": count, "top_k_experts": used}
        fields["moe_intermediate_size"] = metadata.size("expert_feed_forward_length")
    full = {
        "rope_type": "proportional",
        "rope_theta": metadata.number("rope.freq_base"),
        "partial_rotary_factor": _rotated_part(file, fields["global_head_dim"]),
    }
    return fields | rotary_fields(metadata, full)


def _key_heads(file: GGUFFile, metadata: Metadata, types: list[str]) -> dict[str, Any]:
    counts = metadata.sizes("attention.head_count_kv", len(types))
    # Values that are computed as the keys are have no matrix of their own.
    values_are_keys = f"blk.{types.index(FULL)}.attn_v.weight" not in file.tensors
    full = counts[types.index(FULL)]
    local = counts[types.index(SLIDING)] if SLIDING in types else full
    is_expressible = full == local or values_are_keys
    if counts != [full if kind == FULL else local for kind in types] or not is_expressible:
        raise file.error(
            f"its layers have {counts} heads of keys. KerasHub's Gemma 4 has one number of them, "
            "and another one in layers of full attention if their values are their keys"
        )
    return {
        "num_key_value_heads": local,
        "attention_k_eq_v": values_are_keys,
        "num_global_key_value_heads": full if values_are_keys else None,
    }


def _feed_forward(file: GGUFFile, metadata: Metadata, layers: int, shared: int) -> dict[str, Any]:
    widths = metadata.sizes("feed_forward_length", layers)
    own, doubled = widths[0], widths[-1] == 2 * widths[0]
    expected = [own] * (layers - shared) + [2 * own if doubled else own] * shared
    if widths != expected:
        raise file.error(
            f"its feed-forward layers are {widths} wide. KerasHub's Gemma 4 has one width, or "
            "twice that in the layers that share keys"
        )
    return {"intermediate_size": own, "use_double_wide_mlp": doubled}


def _rotated_part(file: GGUFFile, head_dim: int) -> float:
    tensor = file.tensors.get(_ROPE_FACTORS)
    if tensor is None or tensor.shape != (head_dim // 2,):
        raise file.error(f"it holds no '{_ROPE_FACTORS}' with {head_dim // 2} divisors")
    divisors = file.read(_ROPE_FACTORS)
    turning = np.count_nonzero(divisors == 1)
    part = 2 * turning / head_dim
    are_split = (divisors[:turning] == 1).all() and (divisors[turning:] > _NEVER_TURNS).all()
    if not turning or int(part * head_dim) != 2 * turning or not are_split:
        raise file.error(
            f"the divisors in '{_ROPE_FACTORS}' must be ones, and then so large that nothing turns"
        )
    return part


def gemma4_names(config: dict[str, Any]) -> Iterator[tuple[str, str, None]]:
    """The Hugging Face names of experts and what belongs to them, each with its GGUF tensor.

    Args:
        config: A Hugging Face config.

    Yields:
        The name, the tensor, and None for all of it. Nothing for a model without experts, and for
        another family.
    """
    if config["model_type"] != "gemma4_text" or "num_experts" not in config:
        return
    for index in range(config["num_hidden_layers"]):
        for name, part in _EXPERTS.items():
            yield f"model.layers.{index}.{name}", f"blk.{index}.{part}", None


def gemma4_block_shapes(config: dict[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one block's tensors, by name within the block."""
    is_full = config["layer_types"][index] == FULL
    head_dim = config["global_head_dim" if is_full else "head_dim"]
    values_are_keys = is_full and config["attention_k_eq_v"]
    heads = config["num_global_key_value_heads" if values_are_keys else "num_key_value_heads"]
    wide = 2 if config["use_double_wide_mlp"] and shares_keys(config, index) else 1
    inner = wide * config["intermediate_size"]
    shapes = later_gemma_block_shapes(config, index, head_dim, heads, inner)
    if values_are_keys:
        shapes.pop("attn_v.weight", None)
    return shapes | _expert_shapes(config) | {"layer_output_scale.weight": (1,)}


def _expert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if "num_experts" not in config:
        return {}
    hidden, count = config["hidden_size"], config["num_experts"]
    inner = config["moe_intermediate_size"]
    norms = ("post_ffw_norm_1.weight", "pre_ffw_norm_2.weight", "post_ffw_norm_2.weight")
    return {
        **dict.fromkeys((*norms, "ffn_gate_inp.scale"), (hidden,)),
        "ffn_gate_inp.weight": (count, hidden),
        "ffn_down_exps.scale": (count,),
        "ffn_gate_up_exps.weight": (count, 2 * inner, hidden),
        "ffn_down_exps.weight": (count, hidden, inner),
    }
