"""What kerora notes in the header of an adapter's safetensors file.

| key | what |
|---|---|
| `version` | of this format: 1 |
| `fingerprint` | sample values of the base (`fingerprint`) |
| `targets`, `exclude` | as in `LoraConfig` |
| `parts` | of each fused module, the numbers of the layers in it that are adapted |
| `quantization` | how the base was quantised |
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kerora.adapters.errors import AdapterError
from kerora.json_file import parse_json_object

VERSION = 1
_MOST_VALUES = 2**48
_MOST_SAMPLES = 64


def read_notes(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The notes in a header's metadata; empty for an adapter that another program wrote.

    Raises:
        AdapterError: If they are damaged, or of a later version.
    """
    where = f"{file}: the entry `kerora` of its header"
    notes = parse_json_object(metadata.get("kerora", "{}"), where, AdapterError)
    version = notes.get("version", VERSION)
    if version != VERSION:
        raise AdapterError(
            f"{file} was written by a later version of kerora (format {str(version)[:20]}). "
            "Upgrade kerora to read it."
        )
    checks = {
        "fingerprint": _is_fingerprint,
        "targets": _is_patterns,
        "exclude": _is_patterns,
        "parts": _is_parts,
    }
    for name, is_valid in checks.items():
        if name in notes and not is_valid(notes[name]):
            raise AdapterError(f"{where} is damaged: `{name}` is {repr(notes[name])[:80]}")
    return notes


def _is_fingerprint(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("backbone"), str)
        and isinstance(value.get("samples"), dict)
        and len(value["samples"]) <= _MOST_SAMPLES
        and all(_is_sample(sample) for sample in value["samples"].values())
    )


def _is_sample(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_indices(value.get("shape"))
        and 0 < math.prod(value["shape"]) < _MOST_VALUES
        and isinstance(value.get("values"), list)
        and all(isinstance(number, int | float) for number in value["values"])
        and ("places" not in value or isinstance(value.get("tensor"), str))
        and isinstance(value.get("places", []), list)
        and all(_is_indices(place) and len(place) == 2 for place in value.get("places", []))
    )


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < _MOST_VALUES for number in value
    )


def _is_patterns(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(isinstance(pattern, str) for pattern in value)
    return value is None or isinstance(value, str)


def _is_parts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_indices(parts) and len(set(parts)) == len(parts) > 0 for parts in value.values()
    )
