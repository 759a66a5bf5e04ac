"""What KerasHub's T5Gemma 2 leaves out of a Hugging Face configuration, and how it is mended.

Of a T5Gemma 2 encoder and decoder are read for text alone, without the vision tower. KerasHub takes
the base of rotary positions in layers of full attention for fixed, and most other fields from the
decoder's configuration; and without a vision tower it has no place for the vector of the token that
ends an image, which `transformers` looks up in any text.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from kerora.models.errors import inexpressible
from kerora.models.extended_layers import extend_layer
from kerora.models.set_on_layers import note_set, set_on_layer

_FULL, _SLIDING = "full_attention", "sliding_attention"
# What `transformers` fills in, in the encoder's text and in the decoder.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_END_OF_IMAGE = 256_000
_PERIOD = 6
# Fields that may have one value only, or none.
_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    # KerasHub caps the scores; `transformers` reads the field and takes no notice of it.
    "attn_logit_softcapping": None,
    "is_causal": True,
}
# Fields that KerasHub has one value for, the decoder's.
_SHARED = ("vocab_size", "hidden_size", "rms_norm_eps", "query_pre_attn_scalar")


def complete_t5gemma2(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration without a vision tower, and with every field that is read of it.

    Args:
        config: The `config.json` of a Hugging Face folder; left as it is.

    Returns:
        The configuration. `rope_parameters` has, for both kinds of attention, `rope_theta` and
        `factor`.

    Raises:
        ModelSourceError: If its rotary positions are none that KerasHub's layers can compute.
    """
    encoder = dict(config["encoder"])
    encoder.pop("vision_config", None)
    text, end_of_image = encoder["text_config"], encoder.get("eoi_token_index", _END_OF_IMAGE)
    return {
        **config,
        "language_model_of": config["model_type"],
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        # No token has the number -1.
        "eoi_token_index": -1 if end_of_image is None else end_of_image,
        "encoder": {**encoder, "text_config": _complete_part(config, "encoder.text_config", text)},
        "decoder": _complete_part(config, "decoder", config["decoder"]),
    }


def _complete_part(config: dict[str, Any], name: str, given: dict[str, Any]) -> dict[str, Any]:
    part = {**_DEFAULTS, **given}
    period = given.get("sliding_window_pattern", _PERIOD)
    types = [
        _SLIDING if (index + 1) % period else _FULL for index in range(part["num_hidden_layers"])
    ]
    return {
        **part,
        # The whole model's count.
        "dropout_rate": config.get("dropout_rate", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "tie_word_embeddings": True,
        # A field of KerasHub's converter alone: `transformers` always has these norms.
        "use_qk_norm": True,
        "layer_types": given.get("layer_types") or types,
        "rope_parameters": _rope_parameters(name, given),
    }


def _rope_parameters(name: str, part: dict[str, Any]) -> dict[str, dict[str, float]]:
    given = part.get("rope_parameters") or {}
    if unknown := sorted(set(given) - {_FULL, _SLIDING}):
        field = f"{name}.rope_parameters.{unknown[0]}"
        raise inexpressible("t5gemma2", field, given[unknown[0]], f"{_FULL} and {_SLIDING} alone")
    full = {
        "rope_theta": part.get("rope_theta", 1_000_000.0),
        **(given.get(_FULL) or {}),
        **(part.get("rope_scaling") or {}),
    }
    sliding = {
        "rope_theta": part.get("rope_local_base_freq", 10_000.0),
        **(given.get(_SLIDING) or {}),
    }
    return {
        kind: {"rope_theta": rope["rope_theta"], "factor": _factor(f"{name}.{kind}", rope)}
        for kind, rope in ((_FULL, full), (_SLIDING, sliding))
    }


def _factor(name: str, rope: dict[str, Any]) -> float:
    share = rope.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise inexpressible("t5gemma2", f"{name}.partial_rotary_factor", share, 1.0)
    kind = rope.get("rope_type", "default")
    # The field's older name, which `transformers` reads in some places and leaves out in others.
    if rope.get("type", kind) != kind:
        raise inexpressible("t5gemma2", f"{name}.type", rope["type"], f"{kind!r}, the `rope_type`")
    if kind not in ("default", "linear"):
        raise inexpressible("t5gemma2", f"{name}.rope_type", kind, "'default' or 'linear'")
    return rope["factor"] if kind == "linear" else 1.0


def check_t5gemma2(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's T5Gemma 2 cannot compute.

    Args:
        config: A configuration that `complete_t5gemma2` gave.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    if not config["tie_word_embeddings"]:
        raise inexpressible("t5gemma2", "tie_word_embeddings", False, True)
    text, decoder = config["encoder"]["text_config"], config["decoder"]
    for field in _SHARED:
        if text[field] != decoder[field]:
            name, expected = f"encoder.text_config.{field}", f"{decoder[field]!r}, the decoder's"
            raise inexpressible("t5gemma2", name, text[field], expected)
    for name, part in (("encoder.text_config", text), ("decoder", decoder)):
        for field, value in _FIXED.items():
            if part.get(field, value) != value:
                raise inexpressible("t5gemma2", f"{name}.{field}", part[field], repr(value))
        types, count = part["layer_types"], part["num_hidden_layers"]
        if len(types) != count or set(types) - {_FULL, _SLIDING}:
            expected = f"{count} of '{_FULL}' and '{_SLIDING}'"
            raise inexpressible("t5gemma2", f"{name}.layer_types", types, expected)
        window = part["sliding_window"]
        if _SLIDING in types and not window:
            raise inexpressible("t5gemma2", f"{name}.sliding_window", window, "at least 1")


def mend_t5gemma2(backbone: keras.Model, config: dict[str, Any]) -> None:
    """Give the layers of a T5Gemma 2 backbone what each of them has in `transformers`.

    Args:
        backbone: A `keras_hub.models.T5Gemma2Backbone` that was built for `config`, without a
            vision encoder.
        config: A configuration that `complete_t5gemma2` gave.
    """
    text, decoder = config["encoder"]["text_config"], config["decoder"]
    for layer, kind in zip(backbone.encoder_layers, text["layer_types"], strict=True):
        _mend_positions(backbone, layer.self_attn, text["rope_parameters"][kind])
        set_on_layer(backbone, layer, "sliding_window", text["sliding_window"])
    for layer, kind in zip(backbone.decoder_layers, decoder["layer_types"], strict=True):
        _mend_positions(backbone, layer.merged_attn, decoder["rope_parameters"][kind])
    for table in _tables(backbone):
        extend_layer(table, _EndOfImage)
        note_set(backbone, "eoi_token_index")
        table.end_of_image = config["eoi_token_index"]
        table.end_of_image_row = np.zeros(table.output_dim, "float32")


def set_end_of_image(backbone: keras.Model, vector: np.ndarray) -> None:
    """Give encoder and decoder the vector of the token that ends an image.

    Args:
        backbone: A backbone that `mend_t5gemma2` mended.
        vector: The folder's `eoi_embedding`, `(hidden_size,)`.
    """
    for table in _tables(backbone):
        # KerasHub scales what it looks up; the vector is stored as it is after that.
        table.end_of_image_row = np.asarray(vector, "float32") / math.sqrt(table.output_dim)


def _tables(backbone: keras.Model) -> tuple[Any, Any]:
    return backbone.token_embedding, backbone.decoder_token_embedding


def _mend_positions(backbone: keras.Model, attention: Any, rope: dict[str, float]) -> None:
    rotary = attention.rotary_embedding
    set_on_layer(backbone, rotary, "max_wavelength", rope["rope_theta"])
    set_on_layer(backbone, rotary, "scaling_factor", rope["factor"])


class _EndOfImage(keras.layers.Layer):
    """A table that looks up one token elsewhere; a head that shares the table keeps its own row."""

    end_of_image: int
    end_of_image_row: np.ndarray

    def call(self, inputs, **kwargs):
        outputs = super().call(inputs, **kwargs)
        if kwargs.get("reverse"):
            return outputs
        row = keras.ops.convert_to_tensor(self.end_of_image_row, outputs.dtype)
        return keras.ops.where(keras.ops.equal(inputs, self.end_of_image)[..., None], row, outputs)
