"""Filling a backbone through KerasHub's converter with the tensors of a Hugging Face model."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader

from kerora.models.converters import UnroundedArray, converter_of_type, text_config
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.gemma3n_converter import shared_projections, unused_tensors
from kerora.models.huggingface_folder import FolderTensors
from kerora.models.huggingface_paligemma import load_gemma2_norms
from kerora.models.huggingface_t5gemma2 import set_end_of_image
from kerora.models.large_tables import fill_rows, is_large

_TIED_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"
_END_OF_IMAGE = "encoder.embed_tokens.eoi_embedding"
_INNER = "model.language_model."
# What a model that sees has beside its language model.
_SIGHT = re.compile(
    r"(model\.)?(encoder\.)?"
    r"(vision_tower|multi_modal_projector|embed_vision|audio_tower|embed_audio|visual)\."
)
# What a SAM 3 for videos has beside its detector.
_TRACKER = re.compile(r"tracker_(model|neck)\.")
_ENCODER_NAMES = ("roberta.", "albert.", "distilbert.", "vit.", "deit.")
# What BERT's and ESM's files may still call the weights of a norm.
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
# Tables that older versions of `transformers` stored, and any version computes.
_COMPUTED = ("inv_freq", "relative_position_index")
# What PaliGemma's parts are called in files of transformers 5, and in the model.
_NEW_NAMES = {
    "vision_tower.vision_model.": "vision_tower.",
    "language_model.model.": "language_model.",
}
# The shapes of four-bit blocks and their scales that unpack to a tensor of a given shape.
_PACKED = {
    "_blocks": lambda experts, inputs, outputs: (experts, outputs, inputs // 2, 1),
    "_scales": lambda experts, inputs, outputs: (experts, outputs, inputs // 2),
}


def load_weights(
    backbone: keras.Model,
    source: str,
    config: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Fill a backbone from a Hugging Face folder, one tensor at a time.

    Args:
        backbone: A backbone that was built for `config`.
        source: The folder, or a `hf://` handle.
        config: Its `config.json`.
        tensors: Its weights by Hugging Face name, read one by one.

    Raises:
        ModelSourceError: If the weights lack a tensor, cannot be read, or hold one that the
            backbone has no place for.
    """
    tied = bool(text_config(config).get("tie_word_embeddings"))
    left_out = _SIGHT if "language_model_of" in config else None
    if config["model_type"] == "sam3_video":
        left_out = _TRACKER
    names = [name for name in tensors if left_out is None or not left_out.match(name)]
    loader = TensorLoader(source, tensors, names, tied)
    with told_of_source(f"The weights of '{source}' cannot be read"), loader:
        # Qwen 3.5's converter prints an audit of its own.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # SAM 3 has a stage of its mask decoder that no image comes to.
            warnings.filterwarnings("ignore", "Skipping mask_decoder", UserWarning)
            converter_of_type(config["model_type"]).convert_weights(backbone, loader, config)
        if config["model_type"] == "roberta":
            _add_token_type(backbone, loader)
        if config["model_type"] == "gpt_oss":
            _load_plain_experts(backbone, loader)
        if config["model_type"] == "paligemma":
            load_gemma2_norms(backbone, loader)
        if config["model_type"] == "t5gemma2":
            set_end_of_image(backbone, loader.get_tensor(_END_OF_IMAGE))
        if config["model_type"] == "gemma3n":
            loader.taken |= unused_tensors(backbone)
        if config["model_type"].startswith("gemma4"):
            for index, block in enumerate(backbone.transformer_layers):
                if block.attention.is_kv_shared_layer:
                    loader.taken |= shared_projections(index)
    if tied:
        loader.taken.add(_TIED_HEAD)
    _check_all_taken(source, set(names), loader.taken)


class TensorLoader(SafetensorLoader):
    """What a converter asks for tensors, by the names that it expects.

    Args:
        source: The folder or handle that the tensors are from.
        tensors: The tensors by the names that they have.
        names: The names of those that a converter may find. It finds them by how they end, and a
            vision tower's end like an encoder's.
        tied: Whether the head is the table of embeddings, and stored once.

    Attributes:
        taken: Names of tensors that were asked for.
        stood_in: Names of packed tensors that are stored plain.
    """

    def __init__(
        self, source: str, tensors: Mapping[str, np.ndarray], names: Sequence[str], tied: bool
    ) -> None:
        super().__init__(source)
        self.source, self.tensors, self.tied = source, tensors, tied
        # Whether a name is there is asked often, and is to read nothing.
        self.names = dict.fromkeys(names)
        self.taken: set[str] = set()
        self.stood_in: set[str] = set()

    def get_prefixed_key(self, hf_weight_key, dict_like):
        # A language model alone is stored without the name that it has inside one that sees.
        outer = "model." + hf_weight_key.removeprefix(_INNER)
        if hf_weight_key.startswith(_INNER) and hf_weight_key not in dict_like:
            hf_weight_key = outer if outer in dict_like else hf_weight_key
        full_name = super().get_prefixed_key(hf_weight_key, dict_like)
        self.taken.add(full_name)
        return full_name

    def get_tensor(self, hf_weight_key):
        if hf_weight_key == _TIED_HEAD and self.tied:
            # The head of a tied model is not stored twice.
            hf_weight_key = f"model.{_TABLE}"
        try:
            tensor = self._stored(hf_weight_key)
        except KeyError:
            tensor = self._stand_in(hf_weight_key)
        self.taken.add(hf_weight_key)
        return tensor.view(UnroundedArray)

    def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
        # What converters do to a table is to round it (Mistral's) or to cut rows off (PaliGemma's).
        is_as_stored = hook_fn is None or hf_weight_key.endswith(_TABLE)
        if is_as_stored and isinstance(self.tensors, FolderTensors):
            place = self.tensors.places.get(self.get_prefixed_key(hf_weight_key, self.names))
            if place is not None and is_large(keras_variable, place):
                self.taken.add(hf_weight_key)
                fill_rows(keras_variable, place)
                return
        tensor = found = self.get_tensor(hf_weight_key)
        try:
            if hook_fn is not None:
                tensor = hook_fn(tensor, list(keras_variable.shape))
            # Backends widen a bfloat16 array by way of further copies.
            if keras_variable.dtype == "float32":
                tensor = tensor.astype("float32", copy=False)
            keras_variable.assign(np.asarray(tensor))
        except (ValueError, TypeError, IndexError) as error:
            raise ModelSourceError(
                f"The tensor '{hf_weight_key}' of '{self.source}' has the shape {found.shape}, "
                f"which does not fit what its config.json makes it: {str(error)[:300]}"
            ) from error

    def _stored(self, key: str) -> np.ndarray:
        return self.tensors[self.get_prefixed_key(key, self.names)]

    def _stand_in(self, key: str) -> np.ndarray:
        for ending, old in _OLD_NAMES.items():
            if key.endswith(ending):
                with contextlib.suppress(KeyError):
                    return self._stored(key.removesuffix(ending) + old)
        for beginning, new in _NEW_NAMES.items():
            if key.startswith(beginning):
                with contextlib.suppress(KeyError):
                    return self._stored(new + key.removeprefix(beginning))
        if key == f"language_model.{_TIED_HEAD}":
            return self._stored("language_model.shared.weight")  # BLIP-2's, if its T5 is tied
        # In the model, and in some files, T5Gemma 2's encoder has a part for text.
        with contextlib.suppress(KeyError):
            return self._stored(key.replace("encoder.", "encoder.text_model.", 1))
        if key.startswith(_ENCODER_NAMES):
            # A bare encoder is stored without the name that it has below a head.
            key = key.partition(".")[2]
            self.taken.add(key)
            return self._stored(key)
        for ending, shape in _PACKED.items():
            if key.endswith(ending):
                # GPT-OSS's experts as plain tensors; `_load_plain_experts` fills them in.
                self.stood_in.add(key)
                plain = self._stored(key.removesuffix(ending))
                experts, inputs, outputs = plain.shape
                return np.zeros(shape(experts, inputs, outputs), "uint8")
        return self._stored(key)


def _add_token_type(backbone: keras.Model, loader: Any) -> None:
    # KerasHub's RoBERTa has no token types; `transformers` adds the first one's to every token.
    first = loader.get_tensor("roberta.embeddings.token_type_embeddings.weight")[0]
    positions = backbone.embeddings.position_embedding.position_embeddings
    positions.assign(keras.ops.convert_to_numpy(positions) + np.asarray(first, "float32"))


def _load_plain_experts(backbone: keras.Model, loader: Any) -> None:
    # KerasHub reads GPT-OSS's experts in four bits only; transformers also saves them whole.
    for index, block in enumerate(backbone.transformer_layers):
        experts = block.sparse_moe_block.experts
        for name in ("gate_up_proj", "down_proj"):
            key = f"model.layers.{index}.mlp.experts.{name}"
            if f"{key}_blocks" in loader.stood_in:
                getattr(experts, name).assign(np.asarray(loader.get_tensor(key)))


def _check_all_taken(source: str, held: set[str], taken: set[str]) -> None:
    left = sorted(
        name
        for name in held
        if (re.search(r"(^|\.)(layers|layer|h)\.\d+\.", name) or name == _TIED_HEAD)
        and not re.match(r"mtp\.", name)
        and not name.endswith(_COMPUTED)
        and not _is_taken(name, taken)
    )
    if left:
        raise ModelSourceError(
            f"KerasHub's backbone has no place for {len(left)} of the tensors of '{source}', so it "
            f"would not be the same model: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
        )


def _is_taken(name: str, taken: set[str]) -> bool:
    # Converters name some tensors without their leading parts. A model with experts has tens of
    # thousands of names, too many to compare each with each.
    parts = name.split(".")
    return any(".".join(parts[start:]) in taken for start in range(len(parts)))
