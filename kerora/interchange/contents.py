"""What an adapter folder holds, read without a model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from kerora.adapters.errors import AdapterError
from kerora.interchange.atomic_folder import recover_folder
from kerora.interchange.notes import read_notes
from kerora.interchange.peft_config import PeftConfig, read_config
from kerora.interchange.tensor_file import read_tensors

TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_A = (".lora_A.weight", ".lora_embedding_A")
_B = (".lora_B.weight", ".lora_embedding_B")


@dataclasses.dataclass(frozen=True)
class AdapterContents:
    """What an adapter folder holds.

    Attributes:
        folder: Where it lies.
        config: Its `adapter_config.json`.
        factors: PEFT's A, `(rank, in)`, and B, `(out, rank)`, by module name, in float32.
        tables: Names of those modules that are embeddings.
        biases: Trained biases by module name.
        whole: Names of other weights, which the file stores whole: those of `modules_to_save`, and
            the base's own beside an adapted embedding. Their values are not read.
        kerora: What kerora noted when it wrote the adapter: `fingerprint`, `targets`, `exclude`,
            `quantization`. Empty for an adapter that another program wrote.
    """

    folder: Path
    config: PeftConfig
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    tables: frozenset[str]
    biases: dict[str, np.ndarray]
    whole: frozenset[str]
    kerora: dict[str, Any]

    @property
    def parameter_count(self) -> int:
        """Number of trained values."""
        factors = sum(a.size + b.size for a, b in self.factors.values())
        return factors + sum(bias.size for bias in self.biases.values())


def inspect_adapter(folder: str | os.PathLike[str]) -> AdapterContents:
    """Read an adapter folder.

    Args:
        folder: A folder that `save_adapter` or PEFT wrote.

    Raises:
        AdapterError: If a file is missing or damaged, or holds what kerora does not have.

    Example:
    ```python
    contents = inspect_adapter("adapter")
    print(contents.config.rank, sorted(contents.factors))
    ```
    """
    path = Path(folder).expanduser()
    recover_folder(path)
    if not path.is_dir():
        raise AdapterError(f"There is no adapter folder '{folder}'.")
    config = read_config(path)
    file = path / TENSOR_FILE
    if not file.is_file():
        if (path / "adapter_model.bin").exists():
            raise AdapterError(
                f"'{folder}' holds a pickled adapter_model.bin, which could run any code and is "
                f"never read. Load it in PEFT and save it again: PEFT writes {TENSOR_FILE}."
            )
        raise AdapterError(f"'{folder}' holds no {TENSOR_FILE}.")
    tensors, metadata = read_tensors(file, lambda key: not _is_whole(key, config))
    whole = [name_in_base(key) for key, tensor in tensors.items() if tensor is None]
    factors, tables, biases = _sort_tensors(file, tensors)
    notes = read_notes(file, metadata)
    return AdapterContents(path, config, factors, tables, biases, frozenset(whole), notes)


def name_in_base(key: str) -> str:
    """The name in the base of a weight that an adapter's file stores whole as `key`."""
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")


def is_factor(key: str) -> bool:
    """Whether a tensor of an adapter's file is an A or a B."""
    return key.endswith((*_A, *_B))


def _is_whole(key: str, config: PeftConfig) -> bool:
    if is_factor(key):
        return False
    module = name_in_base(key).rpartition(".")[0] + "."
    # PEFT's rule: the end of a module's name, be it a whole part or not ("norm" means all norms).
    if any(f"{name}." in module for name in config.modules_to_save):
        return True
    return key.endswith(".base_layer.weight")


def _sort_tensors(
    file: Path, tensors: dict[str, np.ndarray | None]
) -> tuple[dict[str, Any], frozenset[str], dict[str, Any]]:
    a, b, biases = {}, {}, {}
    tables, unknown = set(), []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if tensor is None:
            continue
        if (module := _without(name, _A)) is not None:
            a[module] = tensor
            if name.endswith(_A[1]):
                tables.add(module)
        elif (module := _without(name, _B)) is not None:
            b[module] = tensor
        elif (module := _without(name, (".base_layer.bias", ".bias"))) is not None:
            biases[module] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise AdapterError(
            f"{file} holds {len(unknown)} tensors that are no part of a LoRA adapter: "
            f"{_some(unknown)}"
        )
    for held, lacking, letter in ((a, b, "B"), (b, a, "A")):
        if alone := sorted(set(held) - set(lacking)):
            raise AdapterError(f"{file} lacks factor {letter} of: {_some(alone)}")
    if not a:
        raise AdapterError(f"{file} holds no adapter.")
    return {module: (a[module], b[module]) for module in a}, frozenset(tables), biases


def _without(name: str, endings: tuple[str, ...]) -> str | None:
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
