"""Qwen 3.5 in a GGUF file: linear attention, and full attention with a gate in some layers.

What is linear attention to `transformers` lies under the names of a state space model.
"""

from __future__ import annotations

from typing import Any

from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_metadata import Metadata
from kerora.models.gguf_rope import check_unscaled

QWEN35 = ("qwen3_5_text", "qwen3_5_moe_text")
_USUAL_INTERVAL = 4  # of layers with full attention
_MOST_PREDICTED = 64  # blocks; the published files have one
_LINEAR, _FULL = "linear_attention", "full_attention"


def qwen35_layers(file: GGUFFile, metadata: Metadata) -> int:
    """Number of blocks without those that predict further tokens.

    Raises:
        ModelSourceError: If none is left.
    """
    blocks, predicting = metadata.size("block_count"), metadata.count("nextn_predict_layers")
    if predicting >= min(blocks, _MOST_PREDICTED):
        raise file.error(f"of its {blocks} blocks {predicting} predict further tokens")
    return blocks - predicting


def qwen35_fields(file: GGUFFile, metadata: Metadata, layers: int, head_dim: int) -> dict[str, Any]:
    """The fields of a Hugging Face config that are Qwen 3.5's own.

    Args:
        file: A GGUF file.
        metadata: Its metadata.
        layers: Number of layers, which tensors of the file have shown to be there.
        head_dim: Length of a head of full attention.

    Raises:
        ModelSourceError: If a value is missing or wrong.
    """
    keys, values = metadata.size("ssm.group_count"), metadata.size("ssm.time_step_rank")
    if values % keys:
        raise file.error(f"its {values} heads of values share {keys} heads of keys")
    check_unscaled(file, metadata)
    rotated = metadata.size("rope.dimension_count", head_dim)
    partial = rotated / head_dim
    if rotated % 2 or int(head_dim * partial) != rotated or partial > 1:
        raise file.error(f"{rotated} of each head's {head_dim} numbers are rotated")
    return {
        "layer_types": _layer_types(metadata, layers),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": values,
        "linear_key_head_dim": metadata.size("ssm.state_size"),
        "linear_value_head_dim": metadata.size("ssm.inner_size") // values,
        "linear_conv_kernel_dim": metadata.size("ssm.conv_kernel"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata.number("rope.freq_base", 10_000.0),
            "partial_rotary_factor": partial,
        },
    }


def _layer_types(metadata: Metadata, layers: int) -> list[str]:
    if metadata.get("attention.recurrent_layers") is not None:
        blocks = metadata.size("block_count")
        linear = metadata.flags("attention.recurrent_layers", blocks)[:layers]
    else:
        interval = metadata.size("full_attention_interval", _USUAL_INTERVAL)
        linear = [(index + 1) % interval != 0 for index in range(layers)]
    return [_LINEAR if is_linear else _FULL for is_linear in linear]


def qwen35_attention_shapes(config: dict[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what one block has in place of a dense model's attention.

    Args:
        config: A Hugging Face config with `qwen35_fields`.
        index: Of the block.

    Returns:
        Shapes by name within the block.
    """
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    norms = ("attn_norm.weight", "post_attention_norm.weight")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(norms, (hidden,))
    if config["layer_types"][index] == _FULL:
        queries = config["num_attention_heads"] * head_dim
        keys = config["num_key_value_heads"] * head_dim
        return shapes | {
            "attn_q.weight": (2 * queries, hidden),  # each head's queries, then its gate
            "attn_k.weight": (keys, hidden),
            "attn_v.weight": (keys, hidden),
            "attn_output.weight": (hidden, queries),
            "attn_q_norm.weight": (head_dim,),
            "attn_k_norm.weight": (head_dim,),
        }
    heads, length = config["linear_num_value_heads"], config["linear_value_head_dim"]
    values = heads * length
    mixed = values + 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    return shapes | {
        "attn_qkv.weight": (mixed, hidden),
        "attn_gate.weight": (values, hidden),
        "ssm_conv1d.weight": (mixed, config["linear_conv_kernel_dim"]),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_alpha.weight": (heads, hidden),
        "ssm_beta.weight": (heads, hidden),
        "ssm_norm.weight": (length,),
        "ssm_out.weight": (hidden, values),
    }
