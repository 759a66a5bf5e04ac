"""A GGUF file's metadata as a Hugging Face `config.json`.

Keys of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

from kerora.models.gguf_experts import SHARED_GATE, expert_fields, expert_shapes, has_experts
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_metadata import Metadata
from kerora.models.gguf_rope import llama3_scaling

# GGUF architecture -> Hugging Face `model_type`. A Mistral is converted to GGUF as "llama", and so
# is a Mixtral.
FAMILIES = {
    "llama": "llama",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
# The one size of each family whose queries are scaled by hidden / heads, by its number of layers;
# GGUF files say nothing of it, and llama.cpp knows it by the same number.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3_text": 62}
_ROPE_FACTORS = "rope_freqs.weight"


def architecture(file: GGUFFile) -> str:
    """The architecture of a model in a GGUF file, such as `"llama"`.

    Raises:
        ModelSourceError: If the file holds no model, or one of an architecture that is not read.
    """
    kind = file.fields.get("general.type", "model")
    if kind != "model":
        raise file.error(f"it holds no model, but the type {kind!r}")
    name = file.fields.get("general.architecture")
    if name not in FAMILIES:
        raise file.error(f"its architecture is {name!r}; read are {', '.join(FAMILIES)}")
    return name


def huggingface_config(file: GGUFFile) -> dict[str, Any]:
    """The `config.json` that the model of a GGUF file would have at Hugging Face.

    Every size in it is one that the file's tensors have, so nothing is built that they do not fill.
    (But for `intermediate_size` of a Qwen with experts: no layer of it has that size.)

    Args:
        file: A GGUF file with a model.

    Raises:
        ModelSourceError: If the metadata lack a value, hold one of another type, or contradict the
            tensors.
    """
    prefix = architecture(file)
    family = FAMILIES[prefix]
    metadata = Metadata(file, prefix)
    vocabulary, hidden = _table_shape(file)
    heads = metadata.size("attention.head_count")
    head_dim = metadata.size("attention.key_length", hidden // heads)
    if family == "llama" and has_experts(metadata):
        family = "mixtral"
    elif family == "llama" and head_dim * heads != hidden:
        family = "mistral"  # KerasHub's Llama has no other head size.
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": metadata.size("embedding_length"),
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.size("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    config |= expert_fields(file, metadata, family)
    if metadata.size("attention.value_length", head_dim) != head_dim:
        raise file.error("its keys and values differ in length")
    if metadata.size("rope.dimension_count", head_dim) != head_dim:
        raise file.error("only a part of each head is rotated")
    _check_sizes(file, config)
    return config | _rotary(file, metadata, family, head_dim) | _attention(metadata, config)


def _table_shape(file: GGUFFile) -> tuple[int, int]:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise file.error("it holds no matrix 'token_embd.weight'")
    return table.shape[0], table.shape[1]


def _check_sizes(file: GGUFFile, config: dict[str, Any]) -> None:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    table = (config["vocab_size"], hidden)
    expected = {"token_embd.weight": table, "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = table
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        **(expert_shapes(config) or _dense_shapes(config)),
    }
    # Not all names at once: the number of layers is not checked yet.
    for index in range(config["num_hidden_layers"]):
        for part, shape in layer.items():
            # Its one row is written as a vector, and by some as a matrix.
            also = (1, *shape) if part == SHARED_GATE else shape
            _check_shape(file, f"blk.{index}.{part}.weight", shape, also)
    for name, shape in expected.items():
        _check_shape(file, name, shape)


def _dense_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return {
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }


def _check_shape(
    file: GGUFFile, name: str, shape: tuple[int, ...], also: tuple[int, ...] = ()
) -> None:
    tensor = file.tensors.get(name)
    if tensor is None:
        raise file.error(f"it holds no tensor '{name}'")
    if tensor.shape not in (shape, also):
        raise file.error(
            f"tensor '{name}' has the shape {tensor.shape}, and the metadata make it {shape}"
        )


def _rotary(file: GGUFFile, metadata: Metadata, family: str, head_dim: int) -> dict[str, Any]:
    theta = metadata.number("rope.freq_base", 10_000.0)
    kind = metadata.get("rope.scaling.type") or "none"
    scaling: dict[str, Any] = {"rope_type": "default"}
    if kind != "none":
        scaling = {"rope_type": kind, "factor": metadata.number("rope.scaling.factor")}
    if _ROPE_FACTORS in file.tensors:
        scaling = llama3_scaling(file, _ROPE_FACTORS, theta, head_dim)
    full = {**scaling, "rope_theta": theta}
    if family != "gemma3_text":
        return {"rope_theta": theta, "rope_parameters": full}
    if full["rope_type"] not in ("default", "linear"):
        raise file.error(f"its rotary scaling is {kind!r}; KerasHub's Gemma 3 has linear scaling")
    local = metadata.number("rope.freq_base_swa", 10_000.0)
    sliding = {"rope_type": "default", "rope_theta": local}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _attention(metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    family, layers = config["model_type"], config["num_hidden_layers"]
    if family.startswith("qwen"):
        return {"use_sliding_window": False, "sliding_window": None}
    if family not in _SCALED_BY_HIDDEN:
        return {"sliding_window": None}
    scalar = config["head_dim"]
    if layers == _SCALED_BY_HIDDEN[family]:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    fields: dict[str, Any] = {
        "query_pre_attn_scalar": scalar,
        "sliding_window": metadata.size("attention.sliding_window"),
    }
    if family == "gemma2":
        fields["attn_logit_softcapping"] = metadata.number("attn_logit_softcapping", 50.0)
        fields["final_logit_softcapping"] = metadata.number("final_logit_softcapping", 30.0)
    return fields
