"""Tiny random `transformers` models, saved as Hugging Face folders, for tests."""

from pathlib import Path
from typing import Any

import numpy as np

_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Far from every default, so that a field that is dropped shows.
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE_HEADS = {**_SHAPE, "head_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
}
_GEMMA2 = {**_WIDE_HEADS, "sliding_window": 4, "query_pre_attn_scalar": 16}
_GEMMA3 = {**_GEMMA2, "num_hidden_layers": 7}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SHAPE, "rope_parameters": _ROPE}),
    "llama31_tied": (
        "LlamaConfig",
        {**_SHAPE, "tie_word_embeddings": True, "rope_parameters": _LLAMA31_ROPE},
    ),
    "mistral": ("MistralConfig", {**_WIDE_HEADS, "sliding_window": 4}),
    "mistral_tied": (
        "MistralConfig",
        {**_SHAPE, "sliding_window": None, "tie_word_embeddings": True},
    ),
    "qwen2": ("Qwen2Config", _SHAPE),
    "qwen2_tied": ("Qwen2Config", {**_SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _WIDE_HEADS),
    "gemma": ("GemmaConfig", {**_WIDE_HEADS, "rope_parameters": _ROPE}),
    "gemma2": ("Gemma2Config", _GEMMA2),
    "gemma2_scaled": ("Gemma2Config", {**_GEMMA2, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", _GEMMA3),
    "gemma3_scaled": (
        "Gemma3TextConfig",
        {**_GEMMA3, "query_pre_attn_scalar": 8, "rope_parameters": _GEMMA3_ROPE},
    ),
}
IDS = np.arange(20)[None] * 7 % 64


def tiny_transformers(name: str, folder: Path, **overrides: Any) -> Any:
    """A `transformers` causal language model whose weights are all random, saved to `folder`."""
    import torch
    import transformers

    config_class, fields = MODELS[name]
    config = getattr(transformers, config_class)(
        **{**fields, **overrides}, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Norms of Gemma count from zero, those of the others from one.
            offset = 1.0 if weight.ndim == 1 and weight.mean() > 0.5 else 0.0
            weight.copy_(torch.randn_like(weight) * 0.3 + offset)
    model.save_pretrained(folder)
    return model


def torch_logits(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits of a `transformers` or PEFT model."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().cpu().numpy()


def keras_logits(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits of a KerasHub causal language model."""
    import keras

    inputs = {"token_ids": ids.astype("int32"), "padding_mask": np.ones_like(ids, "int32")}
    return keras.ops.convert_to_numpy(keras.ops.cast(model(inputs), "float32"))
