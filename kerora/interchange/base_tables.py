"""The base's table that an adapter's file repeats.

PEFT stores the whole table beside an adapted embedding, because some of its rows may have been
given values before the adapter was trained on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import numpy as np

from kerora.adapters.errors import AdapterError
from kerora.interchange.contents import TENSOR_FILE, AdapterContents, name_in_base
from kerora.interchange.layer_names import NamedLayer
from kerora.interchange.merge_changes import BLOCK
from kerora.models.huggingface_folder import TensorPlace, tensor_places

# What rounding to bfloat16, or to float16's smallest values, makes of one value.
_RELATIVE, _ABSOLUTE = 2.0**-7, 2.0**-23

ReadRows = Callable[[int, int], np.ndarray]


def check_table(contents: AdapterContents, layer: NamedLayer, read_rows: ReadRows) -> None:
    """Refuse an adapter whose file has other values for the base's table than the model.

    Args:
        contents: The adapter.
        layer: A layer that it adapts, under its name in the file; nothing to do but for a table.
        read_rows: Reads the model's table from one row up to another, float32.

    Raises:
        AdapterError: If it has.
    """
    if not layer.is_embedding:
        return
    names = {f"{layer.module}.weight"} | ({f"{layer.head}.weight"} if layer.is_tied else set())
    if not names & contents.whole:
        return
    file, table = contents.folder / TENSOR_FILE, layer.candidate.layer
    for key, place in tensor_places(file).items():
        if name_in_base(key) not in names & contents.whole:
            continue
        if place.shape != (table.input_dim, table.output_dim) or not _agrees(place, read_rows):
            raise AdapterError(
                f"{file} holds the base's table '{name_in_base(key)}' with other values than this "
                "model's: rows of it were changed before the adapter was trained, and kerora loads "
                "no base from an adapter. Write both into the base's Hugging Face folder, `kerora "
                f"merge BASE --adapter {contents.folder} --out MERGED`, and load that (in Python, "
                "`force=True` loads the adapter without its table)."
            )


def check_tables_of_model(contents: AdapterContents, layers: list[NamedLayer]) -> None:
    """`check_table` for the layers of a model that an adapter's file holds factors for.

    Of a quantised base what stayed in floating point is compared, as by a fingerprint.
    """
    for layer in layers:
        table = layer.candidate.layer
        variable = getattr(table, "_embeddings", None)
        if variable is not None and getattr(table, "quantization_mode", None) is None:
            check_table(contents, layer, functools.partial(_rows, variable))


def _rows(variable: keras.Variable, start: int, stop: int) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(variable.value[start:stop], "float32"))


def _agrees(place: TensorPlace, read_rows: ReadRows) -> bool:
    if place.dtype is None:
        return False
    step = max(1, BLOCK // (4 * max(1, place.width)))
    for start in range(0, place.rows, step):
        stop = min(start + step, place.rows)
        stored = place.read_rows(start, stop).astype("float32")
        if not np.allclose(stored, read_rows(start, stop), rtol=_RELATIVE, atol=_ABSOLUTE):
            return False
    return True
