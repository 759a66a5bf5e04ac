"""The tensors of a GGUF file under their Hugging Face names and in Hugging Face's layout.

Names come from the `gguf` package's own table. Two layouts differ: llama.cpp's Llama rotates
neighbouring pairs of a head where `transformers` rotates its halves, so the rows of its queries and
keys are permuted; and Gemma's norms are stored as `1 + weight`. An expert's matrix is a part of a
tensor, and read alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import architecture
from kerora.models.gguf_experts import expert_names
from kerora.models.gguf_file import GGUFFile

_LAYER_MODULES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
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
)
_NOT_WEIGHTS = {"rope_freqs.weight"}


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
        names = gguf_names(architecture(file), config["num_hidden_layers"])
        self._places: dict[str, tuple[str, int | None]] = {
            name: (found, None) for name, found in names.items() if found in file.tensors
        }
        for name, stacked, index in expert_names(config):
            self._places[name] = stacked, index
        found = {tensor for tensor, _ in self._places.values()}
        left = sorted(set(file.tensors) - found - _NOT_WEIGHTS)
        if left:
            raise ModelSourceError(
                f"KerasHub's backbone has no place for {len(left)} of the tensors of "
                f"'{file.path}', so it would not be the same model: {', '.join(left[:5])}"
                f"{', …' if len(left) > 5 else ''}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._file.read(*self._places[name])
        if is_permuted(architecture(self._file), name):
            return interleaved_to_halves(tensor, self._config["head_dim"])
        if self._config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
            return tensor - 1
        if name.endswith(".shared_expert_gate.weight"):
            return tensor.reshape(1, -1)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def gguf_names(arch: str, num_layers: int) -> dict[str, str]:
    """Hugging Face tensor names of an architecture, each with its GGUF name.

    Those of experts and routers are `expert_names`.

    Args:
        arch: The GGUF architecture, such as `"llama"`.
        num_layers: Number of blocks.
    """
    import gguf

    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    table = gguf.get_tensor_name_map(number, num_layers)
    modules = ["model.embed_tokens", "model.norm"]
    if not arch.startswith("gemma"):
        modules.append("lm_head")  # Gemma's is its table of embeddings.
    modules += [f"model.layers.{i}.{part}" for i in range(num_layers) for part in _LAYER_MODULES]
    names = {}
    for module in modules:
        for kind in ("weight", "bias"):
            found = table.get_name(f"{module}.{kind}", try_suffixes=(".weight", ".bias"))
            if found is not None:
                names[f"{module}.{kind}"] = found
    return names


def is_permuted(arch: str, name: str) -> bool:
    """Whether llama.cpp keeps the rows of this Hugging Face tensor in its own rotary order."""
    return arch == "llama" and (".self_attn.q_proj." in name or ".self_attn.k_proj." in name)


def interleaved_to_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of queries or keys from llama.cpp's rotary order into that of `transformers`.

    Args:
        rows: `(heads * head_dim, ...)`: the pair that is rotated together lies side by side.
        head_dim: Length of a head.

    Returns:
        The same shape; the pair lies half a head apart.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def halves_to_interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of `interleaved_to_halves`."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
