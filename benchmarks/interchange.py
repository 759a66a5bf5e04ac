"""kerora beside `transformers` and PEFT: `python -m benchmarks.interchange`.

For tiny random-weight models of every family it prints the largest difference between the two
sides' logits (hidden states, for a model without a head), in float32: of the bases alone, of an
adapter that kerora saved and PEFT loaded (export), and of one that PEFT saved and kerora loaded
(import), both on all linear layers at rank 3, scale 5/3; and of the base read from a GGUF file,
which the `gguf` package wrote, for the families that kerora reads so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny_encoders import ENCODERS, IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_sam3 import DETECTORS
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import IDS, MODELS, SEQUENCE_TO_SEQUENCE, tiny_transformers

# Factors of this spread change each kernel by a tenth of its own spread: the logits move by a
# thousand bounds and more, and yet stay so small that float32 rounds them by less than the bound.
SPREAD = 0.1
BOUND = 1e-4
# Biases that train with the adapter, in the families that have some.
BIASES = {
    "qwen2": "all",
    "qwen2_moe": "lora_only",
    "gpt_oss": "lora_only",
    "gpt2": "all",
    "bert": "all",
    "roberta": "lora_only",
    "vit": "lora_only",
    "dinov2": "all",
    "dinov2_swiglu": "all",
    "dinov3": "all",
    "swin": "all",
    "metaclip_2": "all",
    "paligemma": "all",
    "blip2_opt": "all",
    "sam3": "lora_only",
}
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_SHARED = [f"shared_expert.{name}_proj" for name in ("gate", "up", "down")] + ["shared_expert_gate"]
_LINEAR_ATTENTION = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]
_GEMMA4 = [
    *_ATTENTION,
    *("gate_proj", "up_proj", "down_proj"),
    *("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
]
_GEMMA3N = r".*(_proj|linear_left|linear_right|per_layer_input_gate|projection|projections\.\d)"
_LAYERS = r"layers\..*(_proj|fc\d)"
_NO_POOLER = r"encoder\..*(query|key|value|dense)"
_PALIGEMMA = r"query|key|value|attention_output|ffw_.*|.*_proj|mlp_dense_\d|image_classifier"
# All but the projection of a text alone, which a detector has no use for.
_SAM3 = (
    r".*(_proj|fc\d|\.layer\d|mask_embedder\.layers\.\d|(direct|pos_enc)_project)|text_projection"
)
_BLIP2 = r"query|key|value|attention_output|.*_(dense|projection|projector)|dense_\d"
# Where PEFT's "all-linear" takes in what kerora has not: experts; the pooler, which KerasHub's
# RoBERTa, ESM, ViT and DeiT have not; and the vision tower of a model that sees.
PEFT_TARGETS: dict[str, list[str] | str] = {
    "mixtral": _ATTENTION,
    "qwen2_moe": _ATTENTION + _SHARED,
    "qwen2_moe_tied": _ATTENTION + _SHARED,
    "qwen3_moe": _ATTENTION,
    "qwen3_5_moe": _ATTENTION + _LINEAR_ATTENTION + _SHARED,
    "gemma3_vision": r".*language_model\..*_proj",
    "gemma3n_vision": rf"model\.language_model\.{_GEMMA3N}",
    "gemma4_vision": rf".*language_model\..*({'|'.join(_GEMMA4)})",
    "qwen3_5_vision": r".*language_model\..*proj.*",
    "t5gemma2": r".*(text_model|decoder)\..*_proj",
    "roberta": _NO_POOLER,
    "xlm_roberta": _NO_POOLER,
    "esm": _NO_POOLER,
    "vit": _LAYERS,
    "deit": _LAYERS,
    "sam3": _SAM3,
}
# "all-linear" of a model that sees is its text model.
KERORA_TARGETS = {
    "paligemma": _PALIGEMMA,
    "paligemma2": _PALIGEMMA,
    "blip2_opt": _BLIP2,
    "blip2_t5": _BLIP2,
}
# Families read from GGUF, and what a GGUF file cannot say of their tiny models.
GGUF_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama31_tied": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": {},
    "gemma3_scaled": {"query_pre_attn_scalar": 16},
    "mixtral": {"sliding_window": None},
    "qwen2_moe": {},
    "qwen2_moe_tied": {},
    "qwen3_moe": {},
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "gemma4": {},
    # The tokens that are compared have an input of their own for each layer.
    "gemma3n": {"vocab_size_per_layer_input": 64},
    "smollm3": {},
}
# Where "all-linear" takes in what llama.cpp computes without an adapter.
GGUF_TARGETS = {
    "gemma4": [
        *("query", "key", "value", "attention_output"),
        *("ffw_gating", "ffw_gating_2", "ffw_linear"),
        *("per_layer_input_gate", "per_layer_up_proj"),
    ],
    "gemma3n": [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("per_layer_input_gate", "per_layer_projection", "linear_left", "linear_right"),
    ],
}


def load(name: str, folder: Path) -> Any:
    """The Keras model of a folder that `tiny_transformers` wrote."""
    from kerora.models.loading import load_backbone, load_task

    return load_task(folder, preprocessor=None) if name in MODELS else load_backbone(folder)


def randomize_keras(model: Any, spread: float = SPREAD) -> None:
    """Give everything that trains random values."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, spread, variable.shape))


def randomize_peft(model: Any, spread: float = SPREAD) -> None:
    """Give a PEFT model's factors and trained biases random values."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or (weight.requires_grad and name.endswith("bias")):
                weight.copy_(torch.randn_like(weight) * spread)


def load_in_peft(base: Any, folder: Path) -> Any:
    """The adapter of a folder on a `transformers` model; what PEFT warns of is an error."""
    import peft

    with warnings.catch_warnings():
        # PEFT warns of missing keys, unknown fields and targets that do not match.
        warnings.simplefilter("error")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        return peft.PeftModel.from_pretrained(base, folder).eval()


def difference(keras_model: Any, torch_model: Any, ids: np.ndarray = IDS) -> float:
    """The largest difference between the two models' outputs."""
    return float(np.abs(keras_logits(keras_model, ids) - torch_logits(torch_model, ids)).max())


def base_difference(name: str, folder: Path) -> float:
    """Largest difference between the bases alone."""
    reference = tiny_transformers(name, folder)
    return difference(load(name, folder), reference)


def export_difference(name: str, folder: Path) -> tuple[float, float]:
    """Largest difference after kerora saved an adapter and PEFT loaded it; and what it changed."""
    from kerora.adapters import LoraConfig, add_adapter
    from kerora.interchange import save_adapter

    base = tiny_transformers(name, folder / "base")
    model = load(name, folder / "base")
    before = keras_logits(model)
    bias: Any = BIASES.get(name, "none")
    targets = KERORA_TARGETS.get(name, "all-linear")
    add_adapter(model, LoraConfig(rank=3, alpha=5, targets=targets, bias=bias))
    randomize_keras(model)
    save_adapter(model, folder / "adapter")
    changed = float(np.abs(keras_logits(model) - before).max())
    return difference(model, load_in_peft(base, folder / "adapter")), changed


def import_difference(name: str, folder: Path) -> tuple[float, float]:
    """Largest difference after PEFT saved an adapter and kerora loaded it; and what it changed."""
    import peft

    from kerora.interchange import load_adapter

    base = tiny_transformers(name, folder / "base")
    model = load(name, folder / "base")
    before = keras_logits(model)
    bias: Any = BIASES.get(name, "none")
    targets = PEFT_TARGETS.get(name, "all-linear")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, bias=bias)
    with warnings.catch_warnings():
        # That it sets `fan_in_fan_out` itself where GPT-2 needs it.
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    tuned.save_pretrained(folder / "adapter")
    load_adapter(model, folder / "adapter")
    changed = float(np.abs(keras_logits(model) - before).max())
    return difference(model, tuned), changed


def gguf_difference(name: str, folder: Path) -> float:
    """Largest difference between a base and the GGUF file that was made of it."""
    from benchmarks.tiny_gguf import tiny_gguf
    from kerora.models.loading import load_task

    reference = tiny_gguf(name, folder / "model.gguf", **GGUF_FAMILIES[name])
    return difference(load_task(folder / "model.gguf", preprocessor=None), reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.interchange")
    encoders = [*ENCODERS, *IMAGE_ENCODERS, *IMAGE_TEXT_ENCODERS]
    everything = [*MODELS, *encoders, *SEEING, *DETECTORS, *SEQUENCE_TO_SEQUENCE]
    parser.add_argument("families", nargs="*", default=everything, help=", ".join(everything))
    families = parser.parse_args().families
    print("| family | base | export | import | GGUF |\n|---|---|---|---|---|")
    for name in families:
        with tempfile.TemporaryDirectory() as folder:
            base = base_difference(name, Path(folder, "base"))
            out, _ = export_difference(name, Path(folder, "export"))
            back, _ = import_difference(name, Path(folder, "import"))
            read = gguf_difference(name, Path(folder)) if name in GGUF_FAMILIES else None
        figures = [
            f"{base:.1e}",
            f"{out:.1e}",
            f"{back:.1e}",
            "" if read is None else f"{read:.1e}",
        ]
        print(f"| {' | '.join([name, *figures])} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
