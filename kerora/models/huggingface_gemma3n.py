"""What a Hugging Face folder of Gemma 3n leaves unsaid, and the head of KerasHub's.

KerasHub's Gemma 3n takes the table out of its layer and multiplies by it. Called as a layer instead
it gives the same logits, may be quantised or hold an adapter, and training need not hold them all.
"""

from __future__ import annotations

from typing import Any

import keras

from kerora.models.extended_layers import extend_layer, replace_layer

# Those of `transformers`.
_DEFAULTS = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}
# These mean something where they are null.
_MAY_BE_NULL = ("final_logit_softcapping", "altup_coef_clip")


def with_gemma3n_defaults(text: dict[str, Any]) -> dict[str, Any]:
    """A configuration with every field, each list with an entry for every layer.

    Args:
        text: A `config.json` of type `gemma3n_text`; left as it is.
    """
    given = {name: x for name, x in text.items() if x is not None or name in _MAY_BE_NULL}
    result = {**_DEFAULTS, **given}
    count = result["num_hidden_layers"]
    if isinstance(result["intermediate_size"], int):
        result["intermediate_size"] = [result["intermediate_size"]] * count
    if "layer_types" not in result:
        kinds = ["sliding_attention"] * 4 + ["full_attention"]
        result["layer_types"] = [kinds[index % 5] for index in range(count)]
    if "activation_sparsity_pattern" not in result:
        sparse = 10 if count > 10 else 0
        result["activation_sparsity_pattern"] = [0.95] * sparse + [0.0] * (count - sparse)
    return result


def mend_gemma3n(backbone: keras.Model) -> None:
    """Make the table of a backbone's embeddings the layer that also gives the logits.

    Args:
        backbone: A `keras_hub.models.Gemma3nBackbone` that no task was made around yet.
    """
    model: Any = backbone.language_model
    table = model.embed_tokens.embedding
    head = keras.layers.ReversibleEmbedding(
        table.input_dim,
        table.output_dim,
        logit_soft_cap=model.final_logit_soft_cap,
        name=table.name,
        dtype=table.dtype_policy,
    )
    replace_layer(model.embed_tokens, "embedding", head)
    extend_layer(model, _Head)


class _Head(keras.layers.Layer):
    """What a Gemma 3n's text model has beside its own class: its table makes the logits."""

    embed_tokens: Any

    def token_embedding(self, inputs: Any, reverse: bool = False) -> Any:
        if reverse:
            return self.embed_tokens.embedding(inputs, reverse=True)
        return self.embed_tokens(inputs)
