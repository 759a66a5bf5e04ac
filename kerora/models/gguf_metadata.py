"""The numbers in a GGUF file's metadata, each checked before it is used."""

from __future__ import annotations

import math
from typing import Any

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

    def _wrong(self, key: str, expected: str, received: object) -> Exception:
        return self._file.error(
            f"`{self._prefix}.{key}` must be {expected}. Received: {str(received)[:80]!r}"
        )
