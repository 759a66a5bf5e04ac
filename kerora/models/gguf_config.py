"""A GGUF file's metadata as a Hugging Face `config.json`.

Keys of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

from kerora.models.gguf_experts import expert_fields, has_experts
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_gemma3n import gemma3n_fields
from kerora.models.gguf_gemma4 import gemma4_fields
from kerora.models.gguf_later_gemma import LATER_GEMMA
from kerora.models.gguf_metadata import Metadata
from kerora.models.gguf_qwen35 import QWEN35, qwen35_fields, qwen35_layers
from kerora.models.gguf_rope import llama3_scaling, scaling_of_positions
from kerora.models.gguf_shapes import check_shapes

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
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "gemma4": "gemma4_text",
    "gemma3n": "gemma3n_text",
    "smollm3": "smollm3",
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
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma3n_text": "Gemma3nForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
# The one size of each family whose queries are scaled by hidden / heads, by its number of layers;
# GGUF files say nothing of it, and llama.cpp knows it by the same number.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3_text": 62}
# SmolLM3's layers without rotary positions; no file says it, and llama.cpp has the same number.
_NO_ROPE_STEP = 4
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
    if not isinstance(name, str) or name not in FAMILIES:
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
    arch = architecture(file)
    metadata = Metadata(file, arch)
    config = _common_fields(file, metadata, _layer_count(file, metadata, arch))
    family, own = _own_fields(file, metadata, FAMILIES[arch], config)
    config |= {"architectures": [_CLASSES[family]], "model_type": family} | own
    check_shapes(file, config)
    if family in QWEN35 + LATER_GEMMA:
        return config
    return config | _rotary(file, metadata, config) | _attention(metadata, config)


def _layer_count(file: GGUFFile, metadata: Metadata, arch: str) -> int:
    is_qwen35 = FAMILIES[arch] in QWEN35
    layers = qwen35_layers(file, metadata) if is_qwen35 else metadata.size("block_count")
    # Before a list with an entry for each of them is made.
    if (last := f"blk.{layers - 1}.attn_norm.weight") not in file.tensors:
        raise file.error(f"it holds no tensor '{last}'")
    return layers


def _common_fields(file: GGUFFile, metadata: Metadata, layers: int) -> dict[str, Any]:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise file.error("it holds no matrix 'token_embd.weight'")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": metadata.size("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": metadata.size("attention.head_count"),
        "max_position_embeddings": metadata.size("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _own_fields(
    file: GGUFFile, metadata: Metadata, family: str, common: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    layers = common["num_hidden_layers"]
    if family == "gemma4_text":
        return family, gemma4_fields(file, metadata, layers)
    heads, hidden = common["num_attention_heads"], common["hidden_size"]
    head_dim = metadata.size("attention.key_length", max(hidden // heads, 1))
    if metadata.size("attention.value_length", head_dim) != head_dim:
        raise file.error("its keys and values differ in length")
    if family not in QWEN35 and metadata.size("rope.dimension_count", head_dim) != head_dim:
        raise file.error("only a part of each head is rotated")
    if family == "gemma3n_text":
        return family, gemma3n_fields(file, metadata, layers) | {"head_dim": head_dim}
    if family == "llama" and has_experts(metadata):
        family = "mixtral"
    elif family == "llama" and head_dim * heads != hidden:
        family = "mistral"  # KerasHub's Llama has no other head size.
    # Files of Qwen 3.5 MoE have the size of an expert alone.
    inner = metadata.size("feed_forward_length", metadata.get("expert_feed_forward_length"))
    own = {
        "intermediate_size": inner,
        "num_key_value_heads": metadata.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
    }
    if family in QWEN35:
        own |= qwen35_fields(file, metadata, layers, head_dim)
    return family, own | expert_fields(file, metadata, family)


def _rotary(file: GGUFFile, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    theta = metadata.number("rope.freq_base", 10_000.0)
    scaling = scaling_of_positions(metadata)
    if _ROPE_FACTORS in file.tensors:
        if scaling["rope_type"] != "default":
            raise file.error(
                f"its rotary scaling is {scaling['rope_type'][:80]!r} by {scaling['factor']}, and "
                f"that of '{_ROPE_FACTORS}' too; KerasHub's model has one of them"
            )
        scaling = llama3_scaling(file, _ROPE_FACTORS, theta, config["head_dim"])
    full = {**scaling, "rope_theta": theta}
    if config["model_type"] != "gemma3_text":
        return {"rope_theta": theta, "rope_parameters": full}
    if full["rope_type"] not in ("default", "linear"):
        kind = full["rope_type"][:80]
        raise file.error(f"its rotary scaling is {kind!r}; KerasHub's Gemma 3 has linear scaling")
    local = metadata.number("rope.freq_base_swa", 10_000.0)
    sliding = {"rope_type": "default", "rope_theta": local}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _attention(metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    family, layers = config["model_type"], config["num_hidden_layers"]
    if family.startswith("qwen"):
        return {"use_sliding_window": False, "sliding_window": None}
    if family == "smollm3":
        return {
            "no_rope_layers": [int((index + 1) % _NO_ROPE_STEP != 0) for index in range(layers)],
            "layer_types": ["full_attention"] * layers,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
        }
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
