"""Mixtures of experts in a GGUF file.

The experts' matrices of one kind lie in one tensor, `blk.0.ffn_gate_exps.weight` of shape
`(experts, out, in)`; under Hugging Face names each is a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_metadata import Metadata

SHARED_GATE = "ffn_gate_inp_shexp"
_MOST_EXPERTS = 1024  # llama.cpp reads no more
_QWEN = ("mlp.gate", "mlp.experts", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
# Hugging Face's names of the router, the experts, and an expert's matrices by GGUF's names.
_MODULES = {
    "mixtral": (
        "block_sparse_moe.gate",
        "block_sparse_moe.experts",
        {"gate": "w1", "up": "w3", "down": "w2"},
    ),
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
}
_SHARED_EXPERT = ("qwen2_moe", "qwen3_5_moe_text")


def has_experts(metadata: Metadata) -> bool:
    """Whether the metadata are those of a mixture of experts."""
    count = metadata.get("expert_count")
    return not (count is None or (isinstance(count, int) and count == 0))


def expert_fields(file: GGUFFile, metadata: Metadata, family: str) -> dict[str, Any]:
    """The fields of a Hugging Face config that describe the experts.

    Args:
        file: A GGUF file.
        metadata: Its metadata.
        family: The Hugging Face `model_type`.

    Returns:
        The fields; none of them for a family without experts.

    Raises:
        ModelSourceError: If a value is missing or wrong.
    """
    if family not in _MODULES:
        return {}
    count, used = expert_counts(file, metadata)
    fields: dict[str, Any] = {"num_experts_per_tok": used, "output_router_logits": False}
    if family == "mixtral":
        return fields | {"num_local_experts": count}
    fields |= {
        "num_experts": count,
        "moe_intermediate_size": _expert_size(metadata, used),
        # No file says it: llama.cpp does so for every model of the architecture.
        "norm_topk_prob": family != "qwen2_moe",
        "decoder_sparse_step": 1,
        "router_aux_loss_coef": 0.001,
    }
    if family in _SHARED_EXPERT:
        dense = metadata.get("feed_forward_length")
        shared = metadata.size("expert_shared_feed_forward_length", dense)
        fields["shared_expert_intermediate_size"] = shared
    return fields


def expert_counts(file: GGUFFile, metadata: Metadata) -> tuple[int, int]:
    """Number of experts in each block, and of those that are used for a token.

    Raises:
        ModelSourceError: If a value is missing or wrong.
    """
    count, used = metadata.size("expert_count"), metadata.size("expert_used_count")
    if not used <= count <= _MOST_EXPERTS:
        raise file.error(
            f"of {count} experts {used} are used at a time. There can be {_MOST_EXPERTS}, and as "
            "many used as there are"
        )
    return count, used


def _expert_size(metadata: Metadata, used: int) -> int:
    if metadata.get("expert_feed_forward_length") is not None:
        return metadata.size("expert_feed_forward_length")
    return metadata.size("feed_forward_length") // used


def expert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of a block's tensors in place of a dense feed-forward layer's.

    Args:
        config: A Hugging Face config, with `expert_fields` if its family has experts.

    Returns:
        Shapes by name within the block, without `.weight`; none for a family without experts.
    """
    if config["model_type"] not in _MODULES:
        return {}
    hidden = config["hidden_size"]
    count = expert_count(config)
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    shapes: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp": (count, hidden),
        "ffn_gate_exps": (count, inner, hidden),
        "ffn_up_exps": (count, inner, hidden),
        "ffn_down_exps": (count, hidden, inner),
    }
    if (shared := config.get("shared_expert_intermediate_size")) is not None:
        shapes |= {
            SHARED_GATE: (hidden,),
            "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden),
            "ffn_down_shexp": (hidden, shared),
        }
    return shapes


def expert_count(config: dict[str, Any]) -> int:
    """Number of experts in each block of a Hugging Face config that has `expert_fields`."""
    return config["num_local_experts" if config["model_type"] == "mixtral" else "num_experts"]


def expert_names(config: dict[str, Any]) -> Iterator[tuple[str, str, int | None]]:
    """The Hugging Face names of routers and experts, each with where it lies in a GGUF file.

    Args:
        config: A Hugging Face config.

    Yields:
        The name, the GGUF tensor, and which part along its first axis; None for all of it. Nothing
        for a family without experts.
    """
    if config["model_type"] not in _MODULES:
        return
    router, experts, matrices = _MODULES[config["model_type"]]
    for layer in range(config["num_hidden_layers"]):
        yield f"model.layers.{layer}.{router}.weight", f"blk.{layer}.ffn_gate_inp.weight", None
        for short, matrix in matrices.items():
            stacked = f"blk.{layer}.ffn_{short}_exps.weight"
            for index in range(expert_count(config)):
                yield f"model.layers.{layer}.{experts}.{index}.{matrix}.weight", stacked, index
