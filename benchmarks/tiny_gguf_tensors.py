"""The tensors of a tiny `transformers` model as llama.cpp's converter writes them."""

import re
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

F32 = gguf.GGMLQuantizationType.F32
# Norms that are stored as `1 + weight`, by the architecture.
_SHIFTED_NORMS = ("gemma", "gemma2", "gemma3", "qwen35", "qwen35moe")
_PAIRED = ("llama", "smollm3")
# How the converter calls what it renames before it looks for a name in GGUF.
_RENAMED = {
    ".dt_bias": ".dt_proj.bias",
    ".layer_scalar": ".layer_scalar.weight",
    ".correct_output_scale": ".correct_output_scale.weight",
}
# What has no name in the `gguf` package's table.
_GEMMA4_SCALES = {
    ".router.scale": ".ffn_gate_inp.scale",
    ".router.per_expert_scale": ".ffn_down_exps.scale",
}
# As llama.cpp has it.
_NEVER_QUANTISED = ("ffn_gate_inp", "ssm_conv1d")
# Lists of matrices that the converter stacks.
_STACKED = ("model.altup_projections", "model.altup_unembed_projections")


def add_weights(
    writer: gguf.GGUFWriter, model: Any, arch: str, kind: gguf.GGMLQuantizationType
) -> None:
    """Add a model's tensors to a file, and give the model what quantisation made of them."""
    import torch

    number = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for hf_name, parameter in _parameters(model):
        value = parameter.numpy()
        for ending, renamed in _RENAMED.items():
            if hf_name.endswith(ending):
                hf_name = hf_name.removesuffix(ending) + renamed
        found = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        for ending, scale in _GEMMA4_SCALES.items():
            if hf_name.endswith(ending):
                found = f"blk.{hf_name.split('.')[2]}{scale}"
        stored = _ordered(arch, hf_name, value, model)
        used = F32 if stored.ndim < 2 or any(part in found for part in _NEVER_QUANTISED) else kind
        data = gguf.quantize(_changed(arch, hf_name, stored).astype("float32"), used)
        writer.add_tensor(found, data, raw_dtype=used)
        if used != F32:
            places = np.arange(value.size).reshape(value.shape)
            back = np.empty(value.size, "float32")
            back[_ordered(arch, hf_name, places, model)] = gguf.dequantize(data, used)
            parameter.copy_(torch.from_numpy(back.reshape(value.shape)))


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and values, which are the model's own; of experts those that GGUF stacks."""
    import torch

    scalars = [item for item in model.named_buffers() if item[0].endswith(".layer_scalar")]
    for name, parameter in [*model.named_parameters(), *scalars]:
        value = parameter.detach()
        if name.endswith(".mlp.experts.gate_up_proj"):
            gate, up = value.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif "embed_tokens" in name and len(value) < model.config.vocab_size:
            # Tokens of images and sounds have no input of their own for each layer.
            missing = model.config.vocab_size - len(value)
            yield name, torch.nn.functional.pad(value, (0, 0, 0, missing))
        elif not name.startswith(_STACKED):
            yield re.sub(r"experts\.(\w+_proj)$", r"experts.\1.weight", name), value
    for name in _STACKED:
        matrices = [x.detach() for key, x in model.named_parameters() if key.startswith(name)]
        if matrices:
            yield f"{name}.weight", torch.stack(matrices)


def _changed(arch: str, name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith(".A_log"):
        return -np.exp(value)
    if name.endswith("linear_attn.norm.weight"):
        return value
    is_norm = arch in _SHIFTED_NORMS and name.endswith("norm.weight")
    return value + 1 if is_norm else value


def _ordered(arch: str, name: str, value: np.ndarray, model: Any) -> np.ndarray:
    part = name.removesuffix(".weight").split(".")[-1]
    if arch in _PAIRED and part in ("q_proj", "k_proj"):
        # Halves of a head become neighbouring pairs.
        length = model.model.layers[0].self_attn.head_dim
        return value.reshape(-1, 2, length // 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return _value_heads_apart(part, value, model.config) if ".linear_attn." in name else value


def _value_heads_apart(part: str, value: np.ndarray, config: Any) -> np.ndarray:
    # The heads of values that share one of keys lie side by side, and come one round after another.
    def apart(rows: np.ndarray, length: int) -> np.ndarray:
        grouped = rows.reshape(config.linear_num_key_heads, -1, length, *rows.shape[1:])
        return grouped.swapaxes(0, 1).reshape(rows.shape)

    length = config.linear_value_head_dim
    if part == "conv1d":
        value = value[:, 0]
    if part in ("in_proj_qkv", "conv1d"):
        keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
        return np.concatenate([value[:keys], apart(value[keys:], length)])
    if part == "in_proj_z":
        return apart(value, length)
    if part == "out_proj":
        return apart(value.T, length).T
    is_by_head = part in ("in_proj_a", "in_proj_b", "A_log", "bias")
    return apart(value, 1) if is_by_head else value
