"""Reading a GGUF file from a stranger.

Every length in the file is checked against the bytes that are there before it is used, so a
damaged or hostile file is an error and never takes more memory than it has bytes. (The reader of
the `gguf` package trusts its lengths; its dequantisation is used here.)

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerora.models.errors import ModelSourceError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_VALUES_AT_ONCE = 2**18  # few enough for a processor's cache
_STRING, _ARRAY, _BOOL = 8, 9, 7
# By the number that the format gives each type of a value.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in a file.

    Attributes:
        shape: Its shape as in NumPy: rows first.
        kind: Its type, a `gguf.GGMLQuantizationType`.
        start: Its first byte in the file.
        size: Its length in bytes.
    """

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int

    def part(self, index: int) -> GGUFTensor:
        """One of the tensors of which this one is a stack, along its first axis."""
        if not 0 <= index < self.shape[0] or len(self.shape) == 1:
            raise IndexError(f"A tensor of shape {self.shape} has no part {index}.")
        size = self.size // self.shape[0]
        return GGUFTensor(self.shape[1:], self.kind, self.start + index * size, size)


class GGUFFile:
    """The metadata of a GGUF file, and its tensors on demand.

    Attributes:
        path: The file.
        fields: The metadata by key: numbers, booleans, strings; lists of strings; arrays.
        tensors: By name, where each tensor lies.

    Args:
        path: A GGUF file, version 2 or 3, little-endian.

    Raises:
        ModelSourceError: If it is no such file, is cut off, or contradicts itself.

    Example:
    ```python
    file = GGUFFile("model.gguf")
    file.fields["general.architecture"]  # "llama"
    file.read("token_embd.weight").shape  # (49152, 576)
    ```
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file() or self.path.stat().st_size < len(_MAGIC):
            raise self.error("it is no file, or an empty one")
        self._bytes = np.memmap(self.path, np.uint8, "r")
        self._cursor = 0
        if self._take(len(_MAGIC)).tobytes() != _MAGIC:
            raise self.error("it does not start with 'GGUF'")
        version = self._number("<u4")
        if version not in _VERSIONS:
            raise self.error(f"its version is {version}; versions 2 and 3, little-endian, are read")
        tensor_count = self._count("<u8", _SMALLEST_TENSOR, "tensors")
        field_count = self._count("<u8", _SMALLEST_FIELD, "metadata fields")
        self.fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = self._text()
            if key in self.fields:
                raise self.error(f"the metadata field '{key}' occurs twice")
            self.fields[key] = self._value(self._number("<u4"), key)
        self.tensors = self._tensor_table(tensor_count)

    def error(self, problem: str) -> ModelSourceError:
        """The error that says what is wrong with this file."""
        return ModelSourceError(f"The GGUF file '{self.path}' cannot be read: {problem}.")

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        """A tensor as float32, dequantised.

        Args:
            name: Name of the tensor in the file.
            index: Which part of it along its first axis, read alone; None for all of it.

        Raises:
            KeyError: If the file holds no such tensor.
            ModelSourceError: If its type cannot be dequantised.
        """
        import gguf

        tensor = self.tensors[name]
        if index is not None:
            tensor = tensor.part(index)
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        step = _VALUES_AT_ONCE // block * block_bytes
        values, filled = np.empty(math.prod(tensor.shape), "float32"), 0
        try:
            for start in range(tensor.start, tensor.start + tensor.size, step):
                end = min(start + step, tensor.start + tensor.size)
                part = gguf.dequantize(self._bytes[start:end][None], tensor.kind).ravel()
                values[filled : filled + part.size] = part
                filled += part.size
        except NotImplementedError as error:
            raise self.error(f"tensor '{name}' is of type {tensor.kind.name}") from error
        return values.reshape(tensor.shape)

    def _take(self, size: int) -> np.ndarray:
        end = self._cursor + size
        if end > self._bytes.size:
            raise self.error(
                f"it is cut off: {size} bytes are announced at byte {self._cursor}, and the file "
                f"ends at {self._bytes.size}"
            )
        taken, self._cursor = self._bytes[self._cursor : end], end
        return taken

    def _number(self, kind: str) -> Any:
        return self._take(np.dtype(kind).itemsize).view(kind)[0].item()

    def _count(self, kind: str, smallest: int, what: str) -> int:
        count = self._number(kind)
        if count * smallest > self._bytes.size - self._cursor:
            raise self.error(f"it is cut off: it announces {count} {what}")
        return count

    def _text(self) -> str:
        data = self._take(self._number("<u8")).tobytes()
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a text before byte {self._cursor} is not UTF-8") from error

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array(self._number("<u4"), key)
        if kind not in _SCALARS:
            raise self.error(f"the metadata field '{key}' is of the unknown type {kind}")
        value = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _array(self, kind: int, key: str) -> list[str] | np.ndarray:
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            count = self._count("<u8", dtype.itemsize, f"elements of '{key}'")
            return self._take(count * dtype.itemsize).view(dtype)
        if kind != _STRING:
            raise self.error(f"the metadata field '{key}' is an array of the unknown type {kind}")
        return self._texts(self._count("<u8", 8, f"elements of '{key}'"), key)

    def _texts(self, count: int, key: str) -> list[str]:
        # A vocabulary has hundreds of thousands of texts, and a NumPy view of each takes seconds.
        buffer, cursor, texts = self._bytes.data, self._cursor, []
        try:
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", buffer, cursor)
                cursor += 8 + length
                if cursor > len(buffer):
                    raise self.error(f"it is cut off within '{key}'")
                texts.append(str(buffer[cursor - length : cursor], "utf-8"))
        except (struct.error, UnicodeDecodeError) as error:
            raise self.error(f"'{key}' is cut off or not UTF-8") from error
        self._cursor = cursor
        return texts

    def _tensor_table(self, count: int) -> dict[str, GGUFTensor]:
        announced: dict[str, tuple[tuple[int, ...], Any, int, int]] = {}
        for _ in range(count):
            name = self._text()
            if name in announced:
                raise self.error(f"the tensor '{name}' occurs twice")
            announced[name] = self._tensor(name)
        alignment = self.fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"its alignment is {alignment!r}, which is no power of two")
        base = -(-self._cursor // alignment) * alignment
        end, last = base, "the metadata"
        tensors: dict[str, GGUFTensor] = {}
        for name, (shape, kind, offset, size) in sorted(
            announced.items(), key=lambda item: item[1][2]
        ):
            if offset % alignment:
                raise self.error(f"tensor '{name}' does not lie on a multiple of {alignment} bytes")
            if base + offset < end:
                raise self.error(f"the tensors '{last}' and '{name}' overlap")
            end, last = base + offset + size, name
            if end > self._bytes.size:
                raise self.error(
                    f"it is cut off: tensor '{name}' ends at byte {end}, the file at "
                    f"{self._bytes.size}"
                )
            tensors[name] = GGUFTensor(shape, kind, base + offset, size)
        return tensors

    def _tensor(self, name: str) -> tuple[tuple[int, ...], Any, int, int]:
        import gguf

        rank = self._number("<u4")
        if not 1 <= rank <= _MOST_DIMENSIONS:
            raise self.error(f"tensor '{name}' has {rank} dimensions; 1 to 4 are possible")
        # The file lists the fastest dimension first.
        shape = tuple(reversed([self._number("<u8") for _ in range(rank)]))
        number, offset = self._number("<u4"), self._number("<u8")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise self.error(f"tensor '{name}' is of the unknown type {number}") from error
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise self.error(
                f"tensor '{name}' of shape {shape} cannot be of type {kind.name}, whose rows "
                f"consist of blocks of {block}"
            )
        return shape, kind, offset, math.prod(shape) // block * block_bytes
