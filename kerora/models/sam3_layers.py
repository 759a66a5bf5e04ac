"""Layers of SAM 3 that read prompts as `transformers` does: texts forwards, and boxes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class ForwardText(keras.layers.Layer):
    """A text encoder in which no token sees a later one."""

    def call(self, token_ids, padding_masks, training=None):
        hidden = self.embedding(token_ids, training=training)
        places = ops.arange(ops.shape(token_ids)[1])
        is_before = places[None, :, None] >= places[None, None, :]
        mask = ops.logical_and(padding_masks[:, None, :], is_before)
        for layer in self.encoder_layers:
            hidden = layer(hidden, mask, training=training)
        return self.layer_norm(hidden)


class PromptsOfBoxes(keras.layers.Layer):
    """A geometry encoder that is given no prompt where there are no boxes.

    Its sequence is one longer than the boxes: a token of its own follows them. Masked boxes do not
    count, and the token takes the place of the first that would.
    """

    def call(
        self,
        box_embeddings,
        # KerasHub's layer expects them the other way round than its backbone hands them on.
        box_labels,
        box_masks,
        fpn_hidden_states,
        fpn_position_encodings,
        training=None,
    ):
        shape = (-1, self.height * self.width, self.input_hidden_dim)
        image = ops.reshape(fpn_hidden_states, shape)
        positions = ops.reshape(fpn_position_encodings, shape)
        # One more box, which is masked, for the token to be put in place of.
        boxes = ops.pad(box_embeddings[..., 1:], [[0, 0], [0, 1], [0, 0]])
        labels = ops.where(box_masks, box_labels, ops.zeros_like(box_labels))
        labels = ops.pad(labels, [[0, 0], [0, 1]])
        prompts = self._embed(boxes, labels, self.vision_layer_norm(fpn_hidden_states))

        places = ops.arange(ops.shape(labels)[1])[None, :]
        count = ops.sum(ops.cast(box_masks, places.dtype), axis=1, keepdims=True)
        token = self.cls_embed(ops.zeros((1, 1), dtype="int32"))
        prompts = ops.where((places == count)[..., None], token, prompts)
        prompts = self.prompt_layer_norm(self.final_proj(prompts))
        is_there = places <= count
        seen = ops.tile(is_there[:, None, None, :], (1, 1, ops.shape(labels)[1], 1))
        for layer in self.layers:
            prompts = layer(prompts, image, positions, seen, training=training)
        has_boxes = ops.greater(ops.shape(box_masks)[1], 0)
        return self.output_layer_norm(prompts), ops.logical_and(is_there, has_boxes)

    def _embed(self, boxes, labels, features):
        x, y, width, height = ops.unstack(boxes, num=4, axis=-1)
        rows = sample_weights(y - 0.5 * height, y + 0.5 * height, self.height, self.roi_size)
        columns = sample_weights(x - 0.5 * width, x + 0.5 * width, self.width, self.roi_size)
        sampled = ops.einsum("bnph,bhwc->bnpwc", rows, ops.cast(features, rows.dtype))
        sampled = ops.einsum("bnqw,bnpwc->bnpqc", columns, sampled)
        window = (-1, self.roi_size, self.roi_size, self.input_hidden_dim)
        sampled = ops.cast(ops.reshape(sampled, window), features.dtype)
        shape = (-1, ops.shape(boxes)[1], self.hidden_dim)
        embedded = self.boxes_direct_project(boxes)
        embedded += ops.reshape(self.boxes_pool_project(sampled), shape)
        coordinates = [ops.reshape(each, (-1,)) for each in (x, y, width, height)]
        places = self._encode_box_coordinates(*coordinates)
        places = ops.reshape(places, (*shape[:2], self.hidden_dim + 2))
        return embedded + self.boxes_pos_enc_project(places) + self.label_embed(labels)


def sample_weights(start: Any, end: Any, length: int, count: int) -> Any:
    """How much each row of an image gives to each of the equal parts of a range of them.

    As in RoIAlign: every part is sampled at as many evenly spaced points as it is rows high,
    rounded up, and what lies between two rows is interpolated. Ranges of less than a row count as
    one row; points more than a row outside of the image give nothing.

    Args:
        start: Where the ranges begin, in parts of the image; any shape.
        end: Where they end.
        length: Rows of the image. A range may be as long as `count` images.
        count: Parts of each range.

    Returns:
        Weights, float32, of the shape of `start` and then `(count, length)`.
    """
    start, end = (ops.cast(each, "float32")[..., None, None] * length for each in (start, end))
    extent = ops.maximum(end - start, 1.0)
    part = extent / count
    points = ops.ceil(part)
    index = ops.arange(length, dtype="float32")
    parts = ops.arange(count, dtype="float32")[:, None]
    at = start + parts * part + (index + 0.5) * part / points
    counts = (index < points) & (at >= -1.0) & (at <= length)
    distance = ops.abs(ops.clip(at, 0.0, length - 1.0)[..., None] - index)
    weights = ops.maximum(1.0 - distance, 0.0) * ops.cast(counts, "float32")[..., None]
    return ops.sum(weights, axis=-2) / points
