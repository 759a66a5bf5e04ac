"""The numbers in a GGUF file's metadata, each checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kerora.models.gguf_file import GGUFFile


class Metadata:
    """Numbers of one architecture's metadata.

    Args:
        file: A GGUF file.
        prefix: What the architecture's keys start with, such as `"llama"`.

    Example:
    ```python
    metadata = Metadata(GGUFFile("model.gguf"), "llama")
    metadata.size("block_count")  # 30
    ```
    """

    def __init__(self, file: GGUFFile, prefix: str):
        self._file, self._prefix = file, prefix

    def get(self, key: str) -> Any:
        """The value as it is stored; None where there is none."""
        return self._file.fields.get(f"{self._prefix}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            ModelSourceError: If it is none, or is missing and has no default.
        """
        value = self.number(key, default)
        if value != int(value):
            raise self._wrong(key, "a whole number", value)
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number.

        Raises:
            ModelSourceError: If it is none, or is missing and has no default.
        """
        value: Any = default if self.get(key) is None else self.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise self._wrong(key, "a positive number", value)
        return value

    def count(self, key: str) -> int:
        """A whole number that may be 0, which it is where it is missing.

        Raises:
            ModelSourceError: If it is none.
        """
        return self.size(key) if self._is_given(key) else 0

    def optional_number(self, key: str) -> float | None:
        """A positive number; None where it is missing or 0.

        Raises:
            ModelSourceError: If it is none.
        """
        return self.number(key) if self._is_given(key) else None

    def sizes(self, key: str, length: int) -> list[int]:
        """Positive whole numbers, one for each layer; a single one stands for all.

        Args:
            key: Of the metadata.
            length: Number of layers, which tensors of the file have shown to be there.

        Raises:
            ModelSourceError: If they are none, are missing, or are not as many.
        """
        if not isinstance(self.get(key), np.ndarray):
            return [self.size(key)] * length

        def fits(value: np.ndarray) -> bool:
            return value.dtype.kind in "iu" and bool((value > 0).all())

        return [int(x) for x in self._list(key, length, "positive whole numbers", fits)]

    def numbers(self, key: str, length: int) -> list[float]:
        """Numbers, one for each layer, of which some may be infinite.

        Raises:
            ModelSourceError: If they are none, are missing, or are not as many.
        """

        def fits(value: np.ndarray) -> bool:
            return value.dtype.kind in "iuf" and not np.isnan(value).any()

        return [float(x) for x in self._list(key, length, "numbers", fits)]

    def flags(self, key: str, length: int) -> list[bool]:
        """Truth values, one for each layer.

        Raises:
            ModelSourceError: If they are none, are missing, or are not as many.
        """

        def fits(value: np.ndarray) -> bool:
            return not set(value.flat) - {0, 1}

        return [bool(x) for x in self._list(key, length, "truth values", fits)]

    def _list(
        self, key: str, length: int, expected: str, fits: Callable[[np.ndarray], bool]
    ) -> np.ndarray:
        value = self.get(key)
        if not isinstance(value, np.ndarray) or value.size != length or not fits(value):
            raise self._wrong(key, f"{length} {expected}", value)
        return value

    def _is_given(self, key: str) -> bool:
        value = self.get(key)
        return value is not None and not (isinstance(value, int | float) and value == 0)

    def _wrong(self, key: str, expected: str, received: object) -> Exception:
        return self._file.error(
            f"`{self._prefix}.{key}` must be {expected}. Received: {str(received)[:80]!r}"
        )
