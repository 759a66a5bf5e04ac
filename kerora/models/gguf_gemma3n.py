"""Gemma 3n in a GGUF file: several streams of hidden states beside each other (AltUp)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_later_gemma import (
    later_gemma_block_shapes,
    later_gemma_fields,
    rotary_fields,
)
from kerora.models.gguf_metadata import Metadata

_LAUREL = "blk.0.laurel_l.weight"
# Stacked matrices, one for each stream but the first.
_STACKED = {
    "altup_projections": "altup_proj.weight",
    "altup_unembed_projections": "altup_unembd_proj.weight",
}


def gemma3n_fields(file: GGUFFile, metadata: Metadata, layers: int) -> dict[str, Any]:
    """The fields of a Hugging Face config that are Gemma 3n's own.

    Args:
        file: A GGUF file.
        metadata: Its metadata.
        layers: Number of layers, which tensors of the file have shown to be there.

    Raises:
        ModelSourceError: If a value is missing or wrong.
    """
    streams, active = metadata.size("altup.num_inputs"), metadata.count("altup.active_idx")
    if active >= streams:
        raise file.error(f"the active one of its {streams} AltUp inputs is number {active}")
    if _LAUREL not in file.tensors:
        raise file.error(f"it holds no tensor '{_LAUREL}'")
    full = {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base", 10_000.0)}
    # A share of a layer's units is silenced; the file has the quantile of a normal distribution.
    quantiles = metadata.numbers("activation_sparsity_scale", layers)
    return later_gemma_fields(file, metadata, layers) | {
        "num_key_value_heads": metadata.size("attention.head_count_kv"),
        "intermediate_size": metadata.sizes("feed_forward_length", layers),
        "activation_sparsity_pattern": [NormalDist().cdf(quantile) for quantile in quantiles],
        "altup_num_inputs": streams,
        "altup_active_idx": active,
        "laurel_rank": file.tensors[_LAUREL].shape[0],
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
        **rotary_fields(metadata, full),
    }


def gemma3n_names(config: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """The Hugging Face names of matrices that are stacked in a GGUF file.

    Args:
        config: A Hugging Face config.

    Yields:
        The name, the GGUF tensor, and which part along its first axis. Nothing for another family.
    """
    if config["model_type"] != "gemma3n_text":
        return
    for index in range(config["altup_num_inputs"] - 1):
        for module, stacked in _STACKED.items():
            yield f"model.{module}.{index}.weight", stacked, index


def gemma3n_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that belong to no block."""
    hidden, streams = config["hidden_size"], config["altup_num_inputs"]
    return dict.fromkeys(_STACKED.values(), (streams - 1, hidden, hidden))


def gemma3n_block_shapes(config: dict[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one block's tensors, by name within the block."""
    hidden, rank = config["hidden_size"], config["laurel_rank"]
    streams = config["altup_num_inputs"]
    inner = config["intermediate_size"][index]
    heads = config["num_key_value_heads"]
    return {
        **later_gemma_block_shapes(config, index, config["head_dim"], heads, inner),
        "altup_correct_coef.weight": (streams, streams),
        "altup_correct_scale.weight": (hidden,),
        "altup_predict_coef.weight": (streams**2, streams),
        "altup_router.weight": (streams, hidden),
        "altup_router_norm.weight": (hidden,),
        "laurel_l.weight": (rank, hidden),
        "laurel_r.weight": (hidden, rank),
        "laurel_post_norm.weight": (hidden,),
    }
