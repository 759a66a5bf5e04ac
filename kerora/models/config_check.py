"""Whether a Hugging Face `config.json` can be meant seriously, before anything is built for it.

The fields that KerasHub's converters and kerora read have the same names and meanings in every
family. Each must be of its type; and no size can be larger than what the weights beside it hold:
every layer has a tensor, and every row and column a value.
"""

from __future__ import annotations

import math
from typing import Any

from kerora.json_file import shown
from kerora.models.errors import ModelSourceError
from kerora.models.huggingface_folder import TensorPlace

_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depths"),
    *("num_kv_shared_layers", "altup_num_inputs", "altup_active_idx"),
    *("num_layers", "num_decoder_layers", "num_upsampling_stages"),
)
_SIZES = (
    *("vocab_size", "vocab_size_per_layer_input", "type_vocab_size"),
    *("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "hidden_size_per_layer_input"),
    *("intermediate_size", "n_inner", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("moe_intermediate_size", "shared_expert_intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"),
    *("encoder_attention_heads", "decoder_attention_heads", "num_global_key_value_heads"),
    *("head_dim", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim"),
    *("linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "n_positions"),
    *("laurel_rank", "num_register_tokens", "projection_dim"),
    *("embed_dim", "num_heads", "window_size", "ffn_dim", "d_ff", "d_kv"),
    *("fpn_hidden_size", "num_queries", "roi_size"),
    *("num_query_tokens", "cross_attention_frequency"),
)
# Lengths of text, and sides of images, need no tensor.
_LENGTHS = (
    *("max_position_embeddings", "sliding_window", "original_max_position_embeddings"),
    *("image_size", "patch_size", "pretrain_image_size"),
)
_LONGEST = 2**40
_LONGEST_NAME = 100
_MAY_BE_ZERO = (
    *("sliding_window", "num_kv_shared_layers", "hidden_size_per_layer_input"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts"),
    *("vocab_size_per_layer_input", "type_vocab_size", "altup_active_idx"),
    "num_register_tokens",
)
_MAY_BE_LISTS = ("intermediate_size", "depths", "num_heads")
_NUMBERS = (
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta"),
    *("rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping"),
    *("final_logit_softcapping", "factor", "low_freq_factor", "high_freq_factor"),
    *("partial_rotary_factor", "beta_fast", "beta_slow", "swiglu_alpha", "swiglu_limit"),
    *("mlp_ratio", "layerscale_value"),
)
_RATES = (
    *("resid_pdrop", "dropout", "dropout_rate", "hidden_dropout_prob", "attention_dropout"),
    *("embd_pdrop", "attention_probs_dropout_prob", "drop_path_rate"),
)
_SWITCHES = (
    *("tie_word_embeddings", "use_sliding_window", "norm_topk_prob"),
    *("attention_bias", "altup_correct_scale", "qkv_bias", "use_swiglu_ffn", "use_mask_token"),
    *("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"),
    "use_absolute_embeddings",
)
_OBJECTS = (
    *("text_config", "qformer_config", "encoder", "decoder"),
    *("detector_config", "backbone_config", "geometry_encoder_config"),
    *("detr_encoder_config", "detr_decoder_config", "mask_decoder_config"),
    *("rope_parameters", "rope_scaling"),
    *("full_attention", "sliding_attention"),
)
# Models whose tower is loaded; that of others is left out, whatever its fields say.
_READ_TOWERS = ("metaclip_2", "paligemma", "blip-2", "sam3", "sam3_video")
_LISTS = ("layer_types", "architectures")


def check_config(config: dict[str, Any], source: str, places: dict[str, TensorPlace]) -> None:
    """Refuse a configuration with a field of the wrong type, or larger than its weights.

    Args:
        config: A `config.json`.
        source: Where it comes from, for the message.
        places: The tensors that it belongs to.

    Raises:
        ModelSourceError: If there is one; it names the field.
    """
    reads_tower = config.get("model_type") in _READ_TOWERS
    objects = (*_OBJECTS, "vision_config") if reads_tower else _OBJECTS
    _Check(source, len(places), most_values(places), objects).fields(config)


def most_values(places: dict[str, TensorPlace]) -> int:
    """How many values the weights of a model can have that comes from these tensors.

    A tied table may be needed twice, and a byte may hold two values of four bits.
    """
    return 2 * sum(math.prod(place.shape) for place in places.values())


class _Check:
    def __init__(
        self, source: str, most_layers: int, most_values: int, objects: tuple[str, ...]
    ) -> None:
        self._source = source
        self._objects = objects
        self._most_values = most_values
        self._most = {
            **dict.fromkeys(_LAYERS, most_layers),
            **dict.fromkeys(_SIZES, most_values),
            **dict.fromkeys(_LENGTHS, _LONGEST),
        }

    def fields(self, config: dict[str, Any], above: str = "") -> None:
        for name, value in config.items():
            if value is None:
                continue
            full = f"{above}{name}"
            if name in self._objects:
                self._expect(full, value, isinstance(value, dict), "an object")
                self.fields(value, f"{full}.")
            elif name in _LISTS:
                words = isinstance(value, list) and all(isinstance(word, str) for word in value)
                self._expect(full, value, words, "a list of texts")
            elif name == "model_type":
                fine = isinstance(value, str) and len(value) <= _LONGEST_NAME
                self._expect(full, value, fine, f"a text of up to {_LONGEST_NAME} characters")
            elif name in _SWITCHES:
                self._expect(full, value, isinstance(value, bool), "true or false")
            elif name in _MAY_BE_LISTS and isinstance(value, list):
                # One for each layer, or each stage of them.
                for each in value:
                    self._size(name, full, each)
            elif name == "activation_sparsity_pattern":
                fine = isinstance(value, list) and all(map(_is_number, value))
                self._expect(full, value, fine, "a list of numbers")
            elif name in self._most:
                self._size(name, full, value)
            elif name in _NUMBERS:
                fine = _is_number(value) and 0 < value < math.inf
                self._expect(full, value, fine, "a positive number")
            elif name in _RATES:
                fine = _is_number(value) and 0 <= value < 1
                self._expect(full, value, fine, "a number from 0 to 1")
        side, patch = config.get("image_size"), config.get("patch_size")
        if isinstance(side, int) and isinstance(patch, int):
            # Some models number the patches before they make a table of their positions.
            self._at_most(f"{above}image_size", side, math.isqrt(self._most_values) * patch)

    def _size(self, name: str, full: str, value: Any) -> None:
        least = 0 if name in _MAY_BE_ZERO else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        self._expect(full, value, whole and value >= least, f"a whole number from {least}")
        self._at_most(full, value, self._most[name])

    def _at_most(self, full: str, value: int, most: int) -> None:
        if value > most:
            raise ModelSourceError(
                f"The config.json of '{self._source}' asks for more than its weights hold: "
                f"`{full}` can be {most} at most. Received: {shown(value)}"
            )

    def _expect(self, name: str, value: object, fine: bool, expected: str) -> None:
        if not fine:
            raise ModelSourceError(
                f"In the config.json of '{self._source}' `{name}` must be {expected}. Received: "
                f"{shown(value)}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
