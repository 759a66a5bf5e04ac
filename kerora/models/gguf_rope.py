"""Rotary scaling in a GGUF file: of all positions, or Llama 3's, of which it has the divisors."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_metadata import Metadata

# Every Llama 3.1, 3.2 and 3.3 has these two.
_LOW, _HIGH = 1.0, 4.0
_USUAL_CONTEXT = 8192


def check_unscaled(file: GGUFFile, metadata: Metadata) -> None:
    """Refuse scaled rotary positions, for families whose layers in KerasHub have none.

    Raises:
        ModelSourceError: If the metadata name a scaling.
    """
    kind = scaling_of_positions(metadata)["rope_type"]
    if kind != "default":
        raise file.error(f"its rotary scaling is {kind[:80]!r}, and KerasHub's model has none")


def scaling_of_positions(metadata: Metadata) -> dict[str, Any]:
    """The `rope_scaling` of a Hugging Face config that the metadata name, as llama.cpp reads it.

    A factor without a type is linear scaling, a type without a factor (or with 0) scales by 1, and
    older files have the factor under another key.
    """
    given = metadata.get("rope.scaling.type")
    kind = "linear" if given is None else str(given)
    is_newer = metadata.get("rope.scaling.factor") is not None
    key = "rope.scaling.factor" if is_newer else "rope.scale_linear"
    factor = metadata.optional_number(key) or 1.0
    if kind == "none" or (kind == "linear" and factor == 1):
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": factor}


def llama3_scaling(file: GGUFFile, name: str, theta: float, dimension: int) -> dict[str, Any]:
    """The `rope_scaling` of a Hugging Face config that gives the factors in a tensor.

    Llama 3 divides each rotary frequency by 1 (fast ones), by `factor` (slow ones), or by something
    in between; llama.cpp's converter stores the divisors.

    Args:
        file: A GGUF file.
        name: The tensor of divisors, one for each of `dimension / 2` frequencies.
        theta: The base of the frequencies.
        dimension: Length of a head.

    Raises:
        ModelSourceError: If no scaling of that form gives these divisors.
    """
    divisors = file.read(name).ravel()
    if divisors.shape != (dimension // 2,) or not ((divisors >= 1) & np.isfinite(divisors)).all():
        raise file.error(f"'{name}' must hold {dimension // 2} divisors of frequencies")
    wavelengths = 2 * np.pi * theta ** (np.arange(0, dimension, 2) / dimension)
    factor = float(divisors.max())
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _context(divisors, wavelengths, factor),
    }
    if not np.allclose(_divisors(wavelengths, scaling), divisors, rtol=1e-3):
        raise file.error(f"the factors in '{name}' are not those of Llama 3's scaling")
    return scaling


def _context(divisors: np.ndarray, wavelengths: np.ndarray, factor: float) -> int:
    between = np.flatnonzero((divisors > 1) & (divisors < factor))
    if between.size == 0:
        return _USUAL_CONTEXT
    # 1 / divisor = (1 - smooth) / factor + smooth, with
    # smooth = (context / wavelength - low) / (high - low)
    middle = between[np.argmin(abs(1 / divisors[between] - 0.5))]
    smooth = (1 / divisors[middle] - 1 / factor) / (1 - 1 / factor)
    return round(float(wavelengths[middle] * (_LOW + smooth * (_HIGH - _LOW))))


def _divisors(wavelengths: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - _LOW) / (_HIGH - _LOW), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)
