"""Tiny models that answer of an image and a text, and what both sides of them are shown."""

from typing import Any

import numpy as np

from benchmarks.tiny_encoders import IMAGES

_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    # Where it is dropped it shows, small as a part of the logits the image is.
    "layer_norm_eps": 5e-2,
    "vision_use_head": False,
}
_GEMMA = {
    "model_type": "gemma",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
_GEMMA2 = {**_GEMMA, "model_type": "gemma2", "sliding_window": 4, "query_pre_attn_scalar": 8}
_IMAGE_TOKEN = 61
_IMAGE_TOKENS = 4
_PALIGEMMA = {
    "vision_config": _TOWER,
    "projection_dim": 32,
    "hidden_size": 32,
    "vocab_size": 64,
    "image_token_index": _IMAGE_TOKEN,
}
_BLIP2 = {
    "vision_config": {**_TOWER, "model_type": "blip_2_vision_model"},
    "qformer_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "encoder_hidden_size": 16,
        "layer_norm_eps": 1e-3,
        "vocab_size": 64,
    },
    "num_query_tokens": _IMAGE_TOKENS,
    "image_token_index": _IMAGE_TOKEN,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": 64,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 10,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "layer_norm_epsilon": 1e-3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
# Loaded as backbones; the logits of an image and a text are what is compared.
SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    "paligemma": ("PaliGemmaConfig", {**_PALIGEMMA, "text_config": _GEMMA}),
    "paligemma2": ("PaliGemmaConfig", {**_PALIGEMMA, "text_config": _GEMMA2}),
    "blip2_opt": ("Blip2Config", {**_BLIP2, "text_config": _OPT}),
    "blip2_t5": ("Blip2Config", {**_BLIP2, "text_config": _T5}),
}
# So many of the last tokens are the answer, which PaliGemma reads forwards.
_ANSWER = 6


def takes_images_and_text(model: Any) -> bool:
    """Whether a model of either side is one of `SEEING`."""
    if hasattr(model, "input"):
        return isinstance(model.input, dict) and len(model.input) > 2 and "images" in model.input
    return model.config.model_type in ("paligemma", "blip-2")


def torch_seeing_logits(model: Any, ids: np.ndarray, padding_mask: np.ndarray | None) -> np.ndarray:
    """Logits of a `transformers` or PEFT model of `SEEING` for `IMAGES`, each with the text."""
    import torch

    shape = (len(IMAGES), _IMAGE_TOKENS)
    shown = _shown(ids, padding_mask)
    ids = np.concatenate([np.full(shape, _IMAGE_TOKEN), shown["token_ids"]], 1)
    mask = np.concatenate([np.ones(shape, "int32"), shown["padding_mask"]], 1)
    types = np.concatenate([np.zeros(shape, "int32"), shown["response_mask"]], 1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.model_type == "paligemma":
        inputs["token_type_ids"] = types
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = shown["decoder_token_ids"]
        inputs["decoder_attention_mask"] = shown["decoder_padding_mask"]
    inputs["pixel_values"] = IMAGES.transpose(0, 3, 1, 2)
    with torch.no_grad():
        result = model(**{name: torch.tensor(value) for name, value in inputs.items()})
    return result.logits.float().numpy()


def keras_seeing_logits(model: Any, ids: np.ndarray, padding_mask: np.ndarray | None) -> np.ndarray:
    """Logits of a backbone of `SEEING` for `IMAGES`, each with the text."""
    import keras

    shown = {**_shown(ids, padding_mask), "images": IMAGES}
    hidden = model({name: shown[name] for name in model.input})
    if "decoder_token_ids" in model.input:
        logits = model.language_model.lm_head(hidden)
    else:
        logits = model.token_embedding(hidden, reverse=True)
    return keras.ops.convert_to_numpy(keras.ops.cast(logits, "float32"))


def _shown(ids: np.ndarray, padding_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    mask = np.ones_like(ids) if padding_mask is None else padding_mask
    texts = {
        "token_ids": ids,
        "padding_mask": mask,
        "response_mask": np.arange(ids.shape[1])[None] >= ids.shape[1] - _ANSWER,
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids[:, ::-1],
        "decoder_padding_mask": np.ones_like(ids),
    }
    return {name: np.repeat(text, len(IMAGES), 0).astype("int32") for name, text in texts.items()}
