"""What Gemma 3n and Gemma 4 share in a GGUF file.

Both say of each layer whether its attention has a window. The last layers may use the keys and
values of earlier ones, and each layer may be given an input of its own for every token.
"""

from __future__ import annotations

from typing import Any

from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_metadata import Metadata
from kerora.models.gguf_rope import check_unscaled

LATER_GEMMA = ("gemma3n_text", "gemma4_text")
FULL, SLIDING = "full_attention", "sliding_attention"
_PER_LAYER_TABLE = "per_layer_token_embd.weight"
Shape = tuple[int, ...]


def later_gemma_fields(file: GGUFFile, metadata: Metadata, layers: int) -> dict[str, Any]:
    """The fields of a Hugging Face config that both families have.

    Args:
        file: A GGUF file.
        metadata: Its metadata.
        layers: Number of layers, which tensors of the file have shown to be there.

    Raises:
        ModelSourceError: If a value is missing or wrong.
    """
    sliding = metadata.flags("attention.sliding_window_pattern", layers)
    types = [SLIDING if has_window else FULL for has_window in sliding]
    shared = metadata.count("attention.shared_kv_layers")
    own = types[: max(layers - shared, 0)]
    if not set(types) <= set(own):
        raise file.error(
            f"the last {shared} of its {layers} layers share keys and values, and some of them "
            "with no earlier layer of their kind"
        )
    check_unscaled(file, metadata)
    width = metadata.count("embedding_length_per_layer_input")
    table = file.tensors.get(_PER_LAYER_TABLE)
    return {
        "layer_types": types,
        "num_kv_shared_layers": shared,
        "sliding_window": metadata.size("attention.sliding_window"),
        "hidden_size_per_layer_input": width,
        "vocab_size_per_layer_input": None if table is None else table.shape[0],
    }


def rotary_fields(metadata: Metadata, full: dict[str, Any]) -> dict[str, Any]:
    """The field of a Hugging Face config that says how heads are rotated in each kind of layer.

    Args:
        metadata: Of a GGUF file.
        full: What it says of layers of full attention.
    """
    theta = metadata.number("rope.freq_base_swa", 10_000.0)
    sliding = {"rope_type": "default", "rope_theta": theta}
    return {"rope_parameters": {FULL: full, SLIDING: sliding}}


def shares_keys(config: dict[str, Any], index: int) -> bool:
    """Whether a layer has the keys and values of an earlier one."""
    return index >= config["num_hidden_layers"] - config["num_kv_shared_layers"]


def unused_tensors(config: dict[str, Any]) -> set[str]:
    """Tensors that published files hold of layers that share keys, and no model computes with."""
    if config["model_type"] not in LATER_GEMMA:
        return set()
    return {
        f"blk.{index}.{part}.weight"
        for index in range(config["num_hidden_layers"])
        for part in ("attn_k", "attn_v", "attn_k_norm")
        if shares_keys(config, index)
    }


def later_gemma_block_shapes(
    config: dict[str, Any], index: int, head_dim: int, key_heads: int, inner: int
) -> dict[str, Shape]:
    """The shapes of a block's tensors that both families have.

    Args:
        config: A Hugging Face config with `later_gemma_fields`.
        index: Of the block.
        head_dim: Length of a head in it.
        key_heads: Heads of its keys.
        inner: Width of its feed-forward layer.
    """
    hidden, per_layer = config["hidden_size"], config["hidden_size_per_layer_input"]
    queries = config["num_attention_heads"] * head_dim
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    shapes: dict[str, Shape] = {
        **dict.fromkeys(norms, (hidden,)),
        "attn_q": (queries, hidden),
        "attn_q_norm": (head_dim,),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    if not shares_keys(config, index):
        keys = key_heads * head_dim
        shapes |= dict.fromkeys(("attn_k", "attn_v"), (keys, hidden))
        shapes["attn_k_norm"] = (head_dim,)
    if per_layer:
        shapes |= {"inp_gate": (per_layer, hidden), "proj": (hidden, per_layer)}
        shapes["post_norm"] = (hidden,)
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def per_layer_shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """The shapes of what makes each layer's own input; none where layers have none."""
    width = config["hidden_size_per_layer_input"]
    all_layers = config["num_hidden_layers"] * width
    if not width:
        return {}
    return {
        _PER_LAYER_TABLE: (
            config["vocab_size_per_layer_input"] or config["vocab_size"],
            all_layers,
        ),
        "per_layer_model_proj.weight": (all_layers, config["hidden_size"]),
        "per_layer_proj_norm.weight": (width,),
    }
