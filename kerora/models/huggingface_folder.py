"""The safetensors files of a Hugging Face folder, found and read a few rows at a time.

A folder may come from a stranger: what its index and links name must lie inside it. Files are read
with plain reads and not mapped into memory, so that what was read is given back.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kerora.json_file import read_json_object
from kerora.models.errors import ModelSourceError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
_TYPES: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OTHER_TYPES = {
    "F64": "<f8",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    "BOOL": "?",
}


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in a safetensors file.

    Attributes:
        file: The file.
        type: The format's name of the type, such as `"BF16"`.
        shape: The tensor's shape.
        start: First byte, from the beginning of the file.
        size: Number of bytes.
    """

    file: Path
    type: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> np.dtype | None:
        """NumPy's type; None for one that no sum can be written in (whole numbers, 8 bits)."""
        return _TYPES.get(self.type)

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a single value."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return math.prod(self.shape[1:])

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, shape `(rows, width)`, in their own type."""
        assert self.dtype is not None
        row = self.width * self.dtype.itemsize
        with self.file.open("rb") as file:
            file.seek(self.start + start * row)
            data = file.read((stop - start) * row)
        return np.frombuffer(data, self.dtype).reshape(stop - start, self.width)

    def read(self) -> np.ndarray:
        """The whole tensor, in its own type.

        Raises:
            ModelSourceError: If NumPy has no such type.
        """
        dtype = self.dtype or _OTHER_TYPES.get(self.type)
        if dtype is None:
            raise ModelSourceError(
                f"{self.file} holds values of type {self.type}, which cannot be read. Save the "
                "model in float32, float16 or bfloat16."
            )
        count = math.prod(self.shape)
        return np.fromfile(self.file, dtype, count, offset=self.start).reshape(self.shape)


class FolderTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, places: dict[str, TensorPlace]) -> None:
        self.places = places

    def __getitem__(self, name: str) -> np.ndarray:
        return self.places[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self.places  # a Mapping's own way is to read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def tensor_places(file: Path) -> dict[str, TensorPlace]:
    """Where each tensor of a safetensors file lies, in the order of their bytes.

    Raises:
        ModelSourceError: If the file is cut short or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Reads and checks the header alone: sizes, and that the parts neither overlap nor leave
        # gaps.
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelSourceError(f"{file} is damaged or no safetensors file: {error}") from error
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        places[name] = TensorPlace(file, entry["dtype"], shape, 8 + length + begin, end - begin)
    return places


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model of a folder, in a fixed order.

    Raises:
        ModelSourceError: If there are none, the index is damaged, or names a file that is missing
            or would lie elsewhere.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelSourceError(
            f"The folder '{folder}' holds neither {SINGLE_FILE} nor {INDEX_FILE}. Pickled weights "
            "(.bin, .pt) are never read: load the model in transformers and save it with "
            "`save_pretrained`."
        )
    files = [folder / name for name in sorted(set(shards(index).values()))]
    for file in files:
        if not file.is_file():
            raise ModelSourceError(f"{index} names '{file.name}', which is missing.")
    return files


def shards(index: Path) -> dict[str, str]:
    """The name of the file that holds each tensor, as an index says.

    Raises:
        ModelSourceError: If the index is damaged, or names a file that would lie elsewhere.
    """
    names = read_json_object(index, ModelSourceError).get("weight_map")
    if not isinstance(names, dict):
        raise ModelSourceError(f"{index} is damaged: it has no object `weight_map`.")
    for name in names.values():
        is_plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not is_plain or not name.endswith(".safetensors"):
            raise ModelSourceError(
                f"{index} must name safetensors files beside it. Received: {str(name)[:80]!r}"
            )
    return names


def all_places(folder: Path) -> dict[str, TensorPlace]:
    """Where each tensor of a folder's model lies.

    Raises:
        ModelSourceError: As `weight_files`, and if two files hold a tensor of the same name.
    """
    places: dict[str, TensorPlace] = {}
    for file in weight_files(folder):
        for name, place in tensor_places(file).items():
            if name in places:
                raise ModelSourceError(
                    f"Both {places[name].file.name} and {file.name} in '{folder}' hold '{name}'."
                )
            places[name] = place
    return places


def check_inside(folder: Path, path: Path) -> None:
    """Refuse a file of a folder that a link leads to another place.

    Raises:
        ModelSourceError: If it does. The links of a Hugging Face cache, which lead from
            `snapshots/…` to the `blobs` beside, are its way of storing files.
    """
    real, inside = path.resolve(), folder.resolve()
    allowed = [inside]
    if inside.parent.name == "snapshots":
        allowed.append(inside.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise ModelSourceError(
            f"'{path}' is a link that leads out of its folder, to '{real}'. Put the file itself "
            "there."
        )
