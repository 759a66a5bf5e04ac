"""Tiny SAM 3 detectors, and what both sides of them are shown."""

import importlib
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny_encoders import IMAGES

_PART = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    # Said by every folder, and heeded by neither side.
    "layer_norm_eps": 1e-2,
}
_DETECTOR: dict[str, Any] = {
    "vision_config": {
        # Windows in the first layer; the table of positions is that of a quarter of the image.
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            "pretrain_image_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "layer_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
        },
        "fpn_hidden_size": 32,
    },
    "text_config": {
        "vocab_size": 64,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "projection_dim": 20,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-2,
    },
    "geometry_encoder_config": {**_PART, "roi_size": 3},
    "detr_encoder_config": _PART,
    "detr_decoder_config": {**_PART, "num_queries": 5},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4, "layer_norm_eps": 1e-2},
}
# Loaded as backbones; what is compared is all that they say of images, a text and boxes.
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {"sam3": ("Sam3Config", _DETECTOR)}
# Within the image, and beyond two of its edges; one of the last image's is padding.
BOXES = np.array(
    [
        [[0.4, 0.5, 0.55, 0.8], [0.9, 0.85, 0.5, 0.6], [0.3, 0.2, 0.1, 0.15]],
        [[0.6, 0.4, 0.7, 0.3], [0.1, 0.2, 0.5, 0.7], [-10.0, -10.0, 0.0, 0.0]],
    ],
    "float32",
)
LABELS = np.array([[1, 0, 1], [0, 1, -10]], "int32")
_OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")


def torch_detections(
    model: Any,
    ids: np.ndarray,
    padding_mask: np.ndarray | None = None,
    boxes: np.ndarray = BOXES,
    labels: np.ndarray = LABELS,
) -> np.ndarray:
    """All that a `transformers` or PEFT detector says of `IMAGES`, in one row."""
    import torch

    ids, mask = _texts(ids, padding_mask)
    inputs = {
        "pixel_values": IMAGES.transpose(0, 3, 1, 2),
        "input_ids": ids,
        "attention_mask": mask,
        "input_boxes": boxes,
        "input_boxes_labels": labels,
    }
    with torch.no_grad():
        result = model(**{name: torch.tensor(value) for name, value in inputs.items()})
    parts = [getattr(result, name) for name in _OUTPUTS]
    return torch.cat([part.flatten() for part in parts]).float().numpy()


def keras_detections(
    model: Any,
    ids: np.ndarray,
    padding_mask: np.ndarray | None = None,
    boxes: np.ndarray = BOXES,
    labels: np.ndarray = LABELS,
) -> np.ndarray:
    """All that a backbone says of `IMAGES`, as `torch_detections` has it."""
    import keras

    ids, mask = _texts(ids, padding_mask)
    rows = np.broadcast_to(np.arange(len(boxes))[:, None, None], (*boxes.shape[:2], 1))
    result = model(
        {
            "pixel_values": IMAGES,
            "token_ids": ids,
            "padding_mask": mask,
            "boxes": np.concatenate([rows, boxes], -1).astype("float32"),
            "box_labels": labels,
        }
    )
    parts = [result[name.replace("_seg", "_segs")] for name in _OUTPUTS]
    # Images have their channels first in `transformers`.
    parts = [keras.ops.moveaxis(part, -1, 1) if part.ndim == 4 else part for part in parts]
    parts = [keras.ops.cast(keras.ops.ravel(part), "float32") for part in parts]
    return keras.ops.convert_to_numpy(keras.ops.concatenate(parts))


def _texts(ids: np.ndarray, padding_mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    mask = np.ones_like(ids) if padding_mask is None else padding_mask
    count = len(IMAGES) // len(ids)
    return np.repeat(ids, count, 0).astype("int32"), np.repeat(mask, count, 0).astype("int32")


def as_video_model(detector: Path, video: Path) -> None:
    """Save a detector's folder as that of a video model, with tensors that only a tracker has."""
    from safetensors.numpy import load_file, save_file

    video.mkdir()
    config = json.loads((detector / "config.json").read_text())
    whole = {"model_type": "sam3_video", "detector_config": config, "tracker_config": {}}
    (video / "config.json").write_text(json.dumps(whole))
    tensors = load_file(detector / "model.safetensors")
    tracker = {
        "tracker_model.memory_attention.layers.0.linear1.weight": np.ones((4, 4), "float32"),
        "tracker_model.mask_decoder.mask_embedder.layers.0.weight": np.ones((4, 4), "float32"),
        "tracker_neck.fpn_layers.0.proj1.weight": np.ones((32, 8, 1, 1), "float32"),
    }
    tensors = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(tracker | tensors, video / "model.safetensors", {"format": "pt"})


def stand_in_for_torchvision() -> None:
    """Let `transformers` load SAM 3 where torchvision, which pools the features of its boxes, is
    not installed."""
    import transformers

    modeling = importlib.import_module("transformers.models.sam3.modeling_sam3")
    if hasattr(modeling, "torchvision"):
        return
    modeling.torchvision = types.SimpleNamespace(ops=types.SimpleNamespace(roi_align=_roi_align))
    transformers.Sam3Model = modeling.Sam3Model
    for config in (
        transformers.Sam3Config,
        modeling.Sam3VisionConfig,
        modeling.Sam3ViTConfig,
    ):
        model = getattr(modeling, config.__name__.replace("Config", "Model"))
        transformers.AutoModel.register(config, model, exist_ok=True)


def _roi_align(features: Any, boxes: Any, size: int) -> Any:
    # As torchvision documents it, point by point, each the mean of its four neighbours.
    import torch

    result = []
    for image, ranges in zip(features.numpy(), boxes, strict=True):
        for left, top, right, bottom in ranges.numpy():
            height, width = (max(float(side), 1.0) / size for side in (bottom - top, right - left))
            pooled = [
                _mean(image, (top + row * height, height), (left + column * width, width))
                for row in range(size)
                for column in range(size)
            ]
            result.append(np.stack(pooled, -1).reshape(-1, size, size))
    return torch.tensor(np.stack(result))


def _mean(image: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> Any:
    points = [
        [start + (index + 0.5) * extent / math.ceil(extent) for index in range(math.ceil(extent))]
        for start, extent in (rows, columns)
    ]
    values = [_interpolated(image, y, x) for y in points[0] for x in points[1]]
    return np.mean(values, axis=0, dtype="float32")


def _interpolated(image: np.ndarray, y: float, x: float) -> Any:
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(image), "float32")
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    low = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    high = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return low * (1 - (y - top)) + high * (y - top)
