"""Reading and writing the safetensors file of an adapter."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kerora.adapters.errors import AdapterError


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write float32 tensors as a safetensors file, the same bytes for the same values.

    (The safetensors package writes its metadata in an order that differs from run to run.)
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in sorted(tensors):
        size = tensors[name].size * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name], "<f4").tobytes())


def read_tensors(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, np.ndarray | None], dict[str, str]]:
    """The tensors of a safetensors file in float32, and its metadata.

    Args:
        path: The file.
        wanted: Whether to read the tensor of a name; None stands for the others.

    Raises:
        AdapterError: If the file is cut short, is no safetensors file, or holds whole numbers.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, np.ndarray | None] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 - not a dict
                kind = file.get_slice(name).get_dtype()
                if not kind.startswith(("F", "BF")):
                    raise AdapterError(
                        f"{path}: the values of '{name}' must be floating point. Received: {kind}"
                    )
                tensors[name] = file.get_tensor(name).astype("float32") if wanted(name) else None
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:
        # Of types that NumPy lacks the package fails in several ways.
        raise AdapterError(
            f"{path} is damaged or no safetensors file: {error}. Fetch or save the adapter again."
        ) from error
    return tensors, metadata
