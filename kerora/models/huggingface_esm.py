"""What KerasHub's ESM leaves out of a Hugging Face configuration, and how it is mended.

KerasHub takes no notice of `token_dropout`, which scales the embeddings of every ESM-2, and on JAX
and TensorFlow its attention sees padding.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerora.models.errors import inexpressible
from kerora.models.extended_layers import extend_layer
from kerora.models.set_on_layers import note_set

# The share of masked tokens in the training of every ESM, which `transformers` has fixed too.
_MASKED_IN_TRAINING = 0.15 * 0.8


def esm_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the backbone's constructor that mend what its converter drops.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: For a value that KerasHub's backbone cannot express.
    """
    expected = {
        # KerasHub counts learned positions from one less than `transformers` does.
        "position_embedding_type": "rotary",
        "is_decoder": False,
        "is_folding_model": False,
    }
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise inexpressible("esm", field, config[field], repr(value))
    return {"max_wavelength": config.get("rope_theta", 10_000.0)}


def mend_esm(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Let the layers of an ESM backbone compute what `transformers` does.

    Args:
        backbone: A `keras_hub.models.ESMBackbone` that was built for `config`.
        config: The `config.json` of a Hugging Face folder.
    """
    for block in backbone.transformer_layers:
        extend_layer(block.attention_layer, _MaskedKeys)
    note_set(backbone, "the mask of padding")
    if config.get("token_dropout"):
        table = backbone.token_embedding
        extend_layer(table, TokenDropout)
        note_set(backbone, "token_dropout")
        table.mask_token_id, table.pad_token_id = config["mask_token_id"], config["pad_token_id"]


class _MaskedKeys(keras.layers.Layer):
    """Attention in which no token sees padding; KerasHub's masks what padding sees instead."""

    def call(self, x, attention_mask=None):
        batch, length = ops.shape(x)[:2]
        shape = (batch, length, self.heads, self.head_size)
        query, key, value = (
            ops.reshape(dense(x), shape) for dense in (self.q_dense, self.k_dense, self.v_dense)
        )
        query, key = self.rotary_embedding_layer(query, key)
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        outputs = ops.dot_product_attention(query, key, value, mask=mask)
        return self.o_dense(ops.reshape(outputs, (batch, length, -1)))


class TokenDropout(keras.layers.Layer):
    """A table whose masked tokens are zero, and the others the larger the more are masked."""

    mask_token_id: int
    pad_token_id: int

    def call(self, inputs):
        embeddings = super().call(inputs)
        is_masked = ops.equal(inputs, self.mask_token_id)
        length = ops.sum(ops.cast(ops.not_equal(inputs, self.pad_token_id), "float32"), axis=1)
        share = ops.sum(ops.cast(is_masked, "float32"), axis=1) / length
        scale = ops.cast((1 - _MASKED_IN_TRAINING) / (1 - share), embeddings.dtype)
        embeddings = ops.where(is_masked[:, :, None], ops.zeros_like(embeddings), embeddings)
        return embeddings * scale[:, None, None]
