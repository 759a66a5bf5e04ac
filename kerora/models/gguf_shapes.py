"""The shapes that a Hugging Face config gives the tensors of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kerora.models.gguf_experts import SHARED_GATE, expert_shapes
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_gemma3n import gemma3n_block_shapes, gemma3n_shapes
from kerora.models.gguf_gemma4 import gemma4_block_shapes
from kerora.models.gguf_later_gemma import LATER_GEMMA, per_layer_shapes
from kerora.models.gguf_qwen35 import QWEN35, qwen35_attention_shapes

Shape = tuple[int, ...]


def check_shapes(file: GGUFFile, config: dict[str, Any]) -> None:
    """Hold a config against the tensors that its model is filled with.

    Args:
        file: A GGUF file.
        config: What its metadata say, as a Hugging Face config.

    Raises:
        ModelSourceError: If a tensor is missing, or has another shape.
    """
    for name, shape in _shapes(config):
        tensor = file.tensors.get(name)
        if tensor is None:
            raise file.error(f"it holds no tensor '{name}'")
        # Its one row is written as a vector, and by some as a matrix.
        also = (1, *shape) if name.endswith(f".{SHARED_GATE}.weight") else shape
        if tensor.shape not in (shape, also):
            raise file.error(
                f"tensor '{name}' has the shape {tensor.shape}, and the metadata make it {shape}"
            )


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    # One name after the other, since the number of layers may be any.
    for index in range(config["num_hidden_layers"]):
        for part, shape in _block_shapes(config, index).items():
            yield f"blk.{index}.{part}", shape
    yield from _outer_shapes(config).items()


def _outer_shapes(config: dict[str, Any]) -> dict[str, Shape]:
    hidden = config["hidden_size"]
    table = (config["vocab_size"], hidden)
    shapes = {"token_embd.weight": table, "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = table
    if config["model_type"] in LATER_GEMMA:
        shapes |= per_layer_shapes(config)
    if config["model_type"] == "gemma3n_text":
        shapes |= gemma3n_shapes(config)
    return shapes


def _block_shapes(config: dict[str, Any], index: int) -> dict[str, Shape]:
    family = config["model_type"]
    if family == "gemma4_text":
        return gemma4_block_shapes(config, index)
    if family == "gemma3n_text":
        return gemma3n_block_shapes(config, index)
    feed_forward = _weights(expert_shapes(config) or _dense_shapes(config))
    if family in QWEN35:
        return feed_forward | qwen35_attention_shapes(config, index)
    return feed_forward | _weights(_attention_shapes(config))


def _weights(shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _attention_shapes(config: dict[str, Any]) -> dict[str, Shape]:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    return {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
    }


def _dense_shapes(config: dict[str, Any]) -> dict[str, Shape]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return {
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
