"""PEFT's models with adapters, and the folders that they are read from."""

import json
import warnings
from pathlib import Path

import peft
import torch
import transformers

from benchmarks.interchange import randomize_peft


def load(folder, dtype="float32"):
    config = json.loads((Path(folder) / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    return kind.from_pretrained(folder, dtype=dtype).eval()


def adapted(base, folder, spread=0.2, **fields):
    """A PEFT model with a random adapter, saved to `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PEFT has no type of task for images.
        task_type = "CAUSAL_LM" if hasattr(base, "prepare_inputs_for_generation") else None
        model = peft.get_peft_model(base, peft.LoraConfig(task_type=task_type, **fields)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name or weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * spread)
        model.save_pretrained(folder)
    return model


def tuned_by_peft(base, folder, **fields):
    """As `adapted`, of factors that move the logits little enough for an exact comparison."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **fields})
    tuned = peft.get_peft_model(base, config).eval()
    randomize_peft(tuned)
    save_quietly(tuned, folder)
    return tuned


def save_quietly(tuned, folder):
    """Save an adapter without what PEFT says of bases that it cannot find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(folder)
