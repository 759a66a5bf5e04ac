"""Saving an adapter as a GGUF file, for llama.cpp and what is built on it.

The file holds factors as PEFT has them, `lora_a` `(rank, in)` and `lora_b` `(out, rank)`, under the
names of the tensors that they change, in the row order that those have in GGUF:
https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerora.adapters import AdapterError
from kerora.adapters.saved_model import own_class
from kerora.interchange.atomic_folder import folder_beside, real_place
from kerora.interchange.contents import AdapterContents, inspect_adapter
from kerora.interchange.peft import save_adapter
from kerora.models.families import decoder_blocks
from kerora.models.gguf_order import Heads, stored_order
from kerora.models.gguf_tensors import gguf_names

_ARCHITECTURES = {
    "LlamaBackbone": "llama",
    "Llama3Backbone": "llama",
    "MistralBackbone": "llama",
    "GemmaBackbone": "gemma",
    "Gemma3Backbone": "gemma3",
    "QwenBackbone": "qwen2",
    "Qwen3Backbone": "qwen3",
    "MixtralBackbone": "llama",
    "QwenMoeBackbone": "qwen2moe",
    "Qwen3MoeBackbone": "qwen3moe",
    "Qwen3_5Backbone": "qwen35",
    "Qwen3_5MoeBackbone": "qwen35moe",
    "SmolLM3Backbone": "smollm3",
    "Gemma3nBackbone": "gemma3n",
    "Gemma4Backbone": "gemma4",
}
# What llama.cpp multiplies by without looking for an adapter.
_NEVER_ADAPTED = (
    *("embed_tokens", "embed_tokens_per_layer"),
    *("per_layer_model_projection", "altup.modality_router"),
)


def save_gguf_adapter(
    model: keras.Model, path: str | os.PathLike[str], name: str = "default"
) -> None:
    """Write an adapter of a model as a GGUF file that llama.cpp loads beside its base.

    The file appears whole or not at all; one that exists is replaced.

    Args:
        model: A KerasHub task or backbone that holds the adapter: a Llama, Mistral, Mixtral, Gemma,
            Qwen or SmolLM3.
        path: Where to write.
        name: Name of the adapter.

    Raises:
        AdapterError: If the model holds no such adapter, llama.cpp has no such architecture, or a
            GGUF adapter cannot hold what this one changes: embeddings or biases.
        OSError: If the file cannot be written; what was there before is then untouched.

    Example:
    ```python
    model = kerora.from_preset("model.gguf")
    model.load_adapter("my_adapter")
    save_gguf_adapter(model, "my_adapter.gguf")
    llama_cpp.Llama("model.gguf", lora_path="my_adapter.gguf")
    ```
    """
    backbone = getattr(model, "backbone", model)
    architecture = _architecture(backbone)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder) / "adapter", name)
        contents = inspect_adapter(Path(folder) / "adapter")
    tensors = _tensors(contents, backbone, architecture)
    place = real_place(path)
    with folder_beside(place) as hidden:
        new = hidden / place.name
        _write(new, architecture, contents.config.alpha, tensors)
        os.replace(new, place)


def _architecture(backbone: keras.Model) -> str:
    kind = own_class(backbone).__name__
    if kind not in _ARCHITECTURES:
        raise AdapterError(
            f"GGUF adapters are written for {', '.join(_ARCHITECTURES)}. Received: {kind}"
        )
    if kind == "GemmaBackbone" and backbone.use_post_ffw_norm:
        return "gemma2"
    return _ARCHITECTURES[kind]


def _tensors(
    contents: AdapterContents, backbone: keras.Model, architecture: str
) -> dict[str, np.ndarray]:
    if contents.biases:
        raise AdapterError(
            "A GGUF adapter cannot hold trained biases. Train with the bias 'none', or merge "
            "the adapter into its base."
        )
    names = gguf_names(architecture, len(decoder_blocks(backbone)))
    heads = _heads(backbone)
    tensors = {}
    for module, (a, b) in contents.factors.items():
        # A language model's name inside one that sees is not its name in GGUF.
        name = f"{module.replace('model.language_model.', 'model.', 1)}.weight"
        found = names.get(name)
        if found is None or module.endswith(_NEVER_ADAPTED):
            raise AdapterError(
                f"A GGUF adapter cannot hold an adapter on '{module}'. Leave it out of the "
                "targets, or merge the adapter into its base."
            )
        order = stored_order(architecture, name, heads, len(b))
        if order is not None:
            axis, indices = order
            place = np.argsort(indices)
            a, b = (a, b[place]) if axis == 0 else (a[:, place], b)
        tensors[f"{found}.lora_a"] = np.ascontiguousarray(a, "float32")
        tensors[f"{found}.lora_b"] = np.ascontiguousarray(b, "float32")
    return tensors


def _heads(backbone: Any) -> Heads:
    fields = {name: getattr(backbone, name, 0) for name in Heads.__dataclass_fields__}
    if not fields["head_dim"]:
        count = getattr(backbone, "num_query_heads", None) or backbone.num_attention_heads
        fields["head_dim"] = backbone.hidden_dim // count
    return Heads(**fields)


def _write(path: Path, architecture: str, alpha: float, tensors: dict[str, np.ndarray]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
    finally:
        writer.close()
    with path.open("rb+") as file:
        os.fsync(file.fileno())
