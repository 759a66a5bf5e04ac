"""What the models of `tiny_transformers` give, on either side."""

from typing import Any

import numpy as np

from benchmarks.tiny_encoders import IMAGE_TEXT_ENCODERS, IMAGES
from benchmarks.tiny_sam3 import keras_detections, torch_detections
from benchmarks.tiny_seeing import (
    keras_seeing_logits,
    takes_images_and_text,
    torch_seeing_logits,
)
from benchmarks.tiny_transformers import IDS


def torch_logits(
    model: Any, ids: np.ndarray = IDS, padding_mask: np.ndarray | None = None
) -> np.ndarray:
    """Logits of a `transformers` or PEFT model; hidden states where it has none, or a decoder.

    An image encoder is shown `IMAGES`, and a model of `SEEING` them and the text. Of a model that
    compares them with texts it is all that the comparison is made of, in one row; so it is of a
    detector.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if takes_images_and_text(base):
        return torch_seeing_logits(base, ids, padding_mask)
    if base.config.model_type == "sam3":
        return torch_detections(base, ids, padding_mask)
    tokens = torch.tensor(ids)
    # Without a mask some families take tokens that are as 0 as padding for padding.
    mask = torch.tensor(np.ones_like(ids) if padding_mask is None else padding_mask)
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if base.main_input_name == "pixel_values":
            result = base(images)
        elif base.config.model_type in IMAGE_TEXT_ENCODERS:
            result = base(input_ids=tokens, pixel_values=images, attention_mask=mask)
            features = (result.vision_model_output, result.text_model_output)
            parts = [result.logits_per_image, *(feature.pooler_output for feature in features)]
            return torch.cat([part.flatten() for part in parts]).numpy()
        elif base.config.is_encoder_decoder:
            result = base.model(
                input_ids=tokens,
                attention_mask=mask,
                decoder_input_ids=tokens.flip(1),
                decoder_attention_mask=torch.ones_like(mask),
            )
        else:
            result = base(tokens, attention_mask=mask)
    values = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return values.float().cpu().numpy()


def keras_logits(
    model: Any, ids: np.ndarray = IDS, padding_mask: np.ndarray | None = None
) -> np.ndarray:
    """Logits of a KerasHub causal language model, or hidden states of a backbone.

    Of a model that sees, what `torch_logits` gives.
    """
    import keras

    if takes_images_and_text(model):
        return keras_seeing_logits(model, ids, padding_mask)
    if isinstance(model.input, dict) and "box_labels" in model.input:
        return keras_detections(model, ids, padding_mask)
    ids = ids.astype("int32")
    mask = np.ones_like(ids) if padding_mask is None else padding_mask
    known = {
        "token_ids": ids,
        "padding_mask": mask,
        "segment_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1], dtype="int32"), ids.shape),
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids[:, ::-1],
        "decoder_padding_mask": np.ones_like(ids),
        "images": IMAGES,
        "pixel_values": IMAGES,
    }
    is_named = isinstance(model.input, dict)
    outputs = model({name: known[name] for name in model.input} if is_named else IMAGES)
    if isinstance(outputs, dict) and "vision_logits" in outputs:
        parts = [
            outputs["vision_logits"],
            model.get_vision_embeddings(IMAGES),
            model.get_text_embeddings(ids),
        ]
        outputs = keras.ops.concatenate([keras.ops.ravel(part) for part in parts])
    elif isinstance(outputs, dict):
        outputs = outputs.get("sequence_output", outputs.get("decoder_sequence_output"))
    return keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
