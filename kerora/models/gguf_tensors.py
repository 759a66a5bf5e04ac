"""The tensors of a GGUF file under their Hugging Face names and in Hugging Face's layout.

Names come from the `gguf` package's own table. Some heads are kept in another order
(`gguf_order.py`); the norms of Gemma and Qwen 3.5 that count from zero are stored as `1 + weight`,
and Qwen 3.5's `A_log` as what is computed of it. A part of a tensor that stacks several, an
expert's matrix for one, is read alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import architecture
from kerora.models.gguf_experts import expert_names
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_gemma3n import gemma3n_names
from kerora.models.gguf_gemma4 import gemma4_names
from kerora.models.gguf_later_gemma import unused_tensors
from kerora.models.gguf_metadata import Metadata
from kerora.models.gguf_order import Heads, stored_order

_MODULES = (
    "embed_tokens",
    "norm",
    "embed_tokens_per_layer",
    "per_layer_model_projection",
    "per_layer_projection_norm",
)
_LAYER_MODULES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "linear_attn.in_proj_qkv",
    "linear_attn.in_proj_z",
    "linear_attn.in_proj_a",
    "linear_attn.in_proj_b",
    "linear_attn.conv1d",
    "linear_attn.norm",
    "linear_attn.out_proj",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.shared_expert.gate_proj",
    "mlp.shared_expert.up_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_expert_gate",
    "per_layer_input_gate",
    "per_layer_projection",
    "post_per_layer_input_norm",
    "altup.correction_coefs",
    "altup.prediction_coefs",
    "altup.modality_router",
    "altup.router_norm",
    "laurel.linear_left",
    "laurel.linear_right",
    "laurel.post_laurel_norm",
)
# Hugging Face names that do not end with `.weight` or `.bias`, and how the table has them.
_LAYER_PARAMETERS = {
    "linear_attn.A_log": "linear_attn.A_log",
    "linear_attn.dt_bias": "linear_attn.dt_proj.bias",
    "layer_scalar": "layer_scalar.weight",
    "altup.correct_output_scale": "altup.correct_output_scale.weight",
}
# Architectures whose norms are stored as `1 + weight`; but for `_PLAIN_NORM`.
_SHIFTED_NORMS = ("gemma", "gemma2", "gemma3", "qwen35", "qwen35moe")
_PLAIN_NORM = "linear_attn.norm.weight"
_NOT_WEIGHTS = {"rope_freqs.weight"}
_KINDS = ("weight", "bias")
_SUFFIXES = (".weight", ".bias")


class GGUFTensors(Mapping[str, np.ndarray]):
    """A mapping from Hugging Face names to float32 arrays, each read when it is asked for.

    Args:
        file: A GGUF file with a model.
        config: Its Hugging Face configuration.

    Raises:
        ModelSourceError: If the file holds a tensor that has no such name.
    """

    def __init__(self, file: GGUFFile, config: dict[str, Any]):
        self._file, self._config = file, config
        self._arch, self._heads = architecture(file), Heads.of(config)
        names = gguf_names(self._arch, config["num_hidden_layers"])
        held = set(file.tensors) - unused_tensors(config) - _NOT_WEIGHTS
        self._places: dict[str, tuple[str, int | None]] = {
            name: (found, None) for name, found in names.items() if found in held
        }
        for own_names in (expert_names, gemma3n_names, gemma4_names):
            self._places |= {name: (stored, part) for name, stored, part in own_names(config)}
        found = {tensor for tensor, _ in self._places.values()}
        beyond = self._blocks_that_predict_ahead()
        left = sorted(name for name in held - found if not name.startswith(beyond))
        if left:
            raise ModelSourceError(
                f"KerasHub's backbone has no place for {len(left)} of the tensors of "
                f"'{file.path}', so it would not be the same model: {', '.join(left[:5])}"
                f"{', …' if len(left) > 5 else ''}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._file.read(*self._places[name])
        order = stored_order(self._arch, name, self._heads, len(tensor))
        if order is not None:
            axis, indices = order
            tensor = tensor.take(indices, axis)
        if self._arch in _SHIFTED_NORMS and name.endswith("norm.weight"):
            return tensor if name.endswith(_PLAIN_NORM) else tensor - 1
        if name.endswith(".A_log"):
            return self._logarithm(name, tensor)
        if name.endswith(".conv1d.weight"):
            return tensor[:, None]
        if name.endswith(".shared_expert_gate.weight"):
            return tensor.reshape(1, -1)
        return tensor

    def _blocks_that_predict_ahead(self) -> tuple[str, ...]:
        # They follow the model's own and guess further tokens; as with the `mtp.` tensors of a
        # Hugging Face folder, the model is the same without them.
        blocks = Metadata(self._file, self._arch).size("block_count")
        return tuple(f"blk.{n}." for n in range(self._config["num_hidden_layers"], blocks))

    def _logarithm(self, name: str, decay: np.ndarray) -> np.ndarray:
        if not (decay < 0).all():
            raise self._file.error(f"'{self._places[name][0]}' must hold negative numbers")
        return np.log(-decay)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def gguf_names(arch: str, num_layers: int) -> dict[str, str]:
    """Hugging Face tensor names of an architecture, each with its GGUF name.

    Those of tensors that hold several are `expert_names`, `gemma3n_names` and `gemma4_names`.

    Args:
        arch: The GGUF architecture, such as `"llama"`.
        num_layers: Number of blocks.
    """
    import gguf

    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    table = gguf.get_tensor_name_map(number, num_layers)
    modules = [f"model.{part}" for part in _MODULES]
    if not arch.startswith("gemma"):
        modules.append("lm_head")  # Gemma's is its table of embeddings.
    layers = [f"model.layers.{index}" for index in range(num_layers)]
    modules += [f"{layer}.{part}" for layer in layers for part in _LAYER_MODULES]
    keys = {f"{module}.{kind}": f"{module}.{kind}" for module in modules for kind in _KINDS}
    keys |= {
        f"{layer}.{name}": f"{layer}.{key}"
        for layer in layers
        for name, key in _LAYER_PARAMETERS.items()
    }
    found = {name: table.get_name(key, try_suffixes=_SUFFIXES) for name, key in keys.items()}
    return {name: stored for name, stored in found.items() if stored is not None}
