"""KerasHub's `.lora.h5` as an adapter folder, for a base that is a folder and no model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kerora.interchange.keras_lora import load_keras_lora
from kerora.interchange.peft import save_adapter
from kerora.models.loading import load_empty_backbone


@contextlib.contextmanager
def as_adapter_folder(base: Path, adapter: Path) -> Iterator[Path]:
    """An adapter folder that lasts as long as the context.

    KerasHub numbers the layers of a model instead of naming them, so a `.lora.h5` needs one: the
    base's backbone is built with zeros, in bfloat16, which takes two bytes for each of its values.

    Args:
        base: The folder of the base.
        adapter: A `.lora.h5` file, or an adapter folder, which is given back.

    Raises:
        AdapterError: If the file is damaged, or does not fit the base.
        ModelSourceError: If kerora cannot build the base.
    """
    if not adapter.is_file():
        yield adapter
        return
    backbone = load_empty_backbone(base, dtype="bfloat16")
    load_keras_lora(backbone, adapter)
    with tempfile.TemporaryDirectory(prefix="kerora-lora-") as folder:
        converted = Path(folder) / "adapter"
        save_adapter(backbone, converted)
        del backbone
        yield converted
