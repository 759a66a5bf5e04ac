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
    "layer_norm_eps": 1e-3,
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
_PALIGEMMA = {
    "vision_config": _TOWER,
    "projection_dim": 32,
    "hidden_size": 32,
    "vocab_size": 64,
    "image_token_index": _IMAGE_TOKEN,
}
# Loaded as backbones; the logits of an image and a text are what is compared.
SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    "paligemma": ("PaliGemmaConfig", {**_PALIGEMMA, "text_config": _GEMMA}),
    "paligemma2": ("PaliGemmaConfig", {**_PALIGEMMA, "text_config": _GEMMA2}),
}
_IMAGE_TOKENS = 4
# So many of the last tokens are the answer, which is read forwards.
_ANSWER = 6


def takes_images_and_text(model: Any) -> bool:
    """Whether a model of either side is one of `SEEING`."""
    if hasattr(model, "input"):
        return isinstance(model.input, dict) and len({"images", "token_ids"} & {*model.input}) == 2
    return model.config.model_type == "paligemma"


def torch_seeing_logits(model: Any, ids: np.ndarray, padding_mask: np.ndarray | None) -> np.ndarray:
    """Logits of a `transformers` or PEFT model of `SEEING` for `IMAGES`, each with the text."""
    import torch

    shape = (len(IMAGES), _IMAGE_TOKENS)
    shown = _shown(ids, padding_mask)
    ids = np.concatenate([np.full(shape, _IMAGE_TOKEN), shown["token_ids"]], 1)
    mask = np.concatenate([np.ones(shape, "int32"), shown["padding_mask"]], 1)
    types = np.concatenate([np.zeros(shape, "int32"), shown["response_mask"]], 1)
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(IMAGES.transpose(0, 3, 1, 2)),
            attention_mask=torch.tensor(mask),
            token_type_ids=torch.tensor(types),
        )
    return result.logits.float().numpy()


def keras_seeing_logits(model: Any, ids: np.ndarray, padding_mask: np.ndarray | None) -> np.ndarray:
    """Logits of a backbone of `SEEING` for `IMAGES`, each with the text."""
    import keras

    shown = {**_shown(ids, padding_mask), "images": IMAGES}
    hidden = model({name: shown[name] for name in model.input})
    logits = model.token_embedding(hidden, reverse=True)
    return keras.ops.convert_to_numpy(keras.ops.cast(logits, "float32"))


def _shown(ids: np.ndarray, padding_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    mask = np.ones_like(ids) if padding_mask is None else padding_mask
    answer = np.arange(ids.shape[1])[None] >= ids.shape[1] - _ANSWER
    texts = {"token_ids": ids, "padding_mask": mask, "response_mask": answer}
    return {name: np.repeat(text, len(IMAGES), 0).astype("int32") for name, text in texts.items()}
