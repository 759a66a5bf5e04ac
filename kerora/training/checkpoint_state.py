"""Which variables training changes, and how saved ones find theirs again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kerora.training.errors import CheckpointError

Entry = dict[str, Any]
_SHOWN_DIFFERENCES = 5


def changing_variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """The variables that a training step changes, by kind, each kind in a fixed order.

    Kinds are `"trainable"`; `"state"`, the random seeds and what layers such as
    `BatchNormalization` count along; and `"optimizer"`. Frozen weights are not among them, nor are
    metrics. The optimizer is built if it was not.
    """
    trainable = list(model.trainable_variables)
    seen = {id(variable) for variable in trainable}
    state = []
    for variable in [*_seeds(model), *_counted_along(model)]:
        if id(variable) not in seen:
            seen.add(id(variable))
            state.append(variable)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise CheckpointError("The model has no optimizer yet. Call `model.compile(...)` first.")
    if not optimizer.built:
        optimizer.build(trainable)
    return {"trainable": trainable, "state": state, "optimizer": list(optimizer.variables)}


def _seeds(model: keras.Model) -> list[keras.Variable]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _counted_along(model: keras.Model) -> Iterator[keras.Variable]:
    # A frozen kernel and a moving average both say `trainable=False`; only Keras' own lists, kept
    # from when the variable was made, tell the two apart. Quantised kernels are made that way too.
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is None:
            for variable in layer._non_trainable_variables:
                if keras.backend.is_float_dtype(variable.dtype):
                    yield variable


def describe(variable: keras.Variable) -> Entry:
    """Path, shape and type of a variable, for JSON."""
    return {
        "path": variable.path,
        "shape": list(variable.shape),
        "dtype": keras.backend.standardize_dtype(variable.dtype),
    }


def read_value(variable: keras.Variable) -> np.ndarray:
    """The value of a variable as an array of its own, in its own type (bfloat16 included)."""
    # A view of the buffer would be gone when the next step donates it.
    value = np.array(keras.ops.convert_to_numpy(variable.value))
    return value.astype(numpy_type(variable.dtype), copy=False)


def numpy_type(dtype: str) -> np.dtype:
    """NumPy's type of that name, bfloat16 included."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def match(kind: str, saved: Sequence[Entry], variables: Sequence[keras.Variable]) -> list[int]:
    """For each variable the index of the saved entry that belongs to it.

    Entries are found by path where paths are unique and the same on both sides, else by position:
    Keras numbers names such as `adamw_1` or `dropout_3` by how many there were in the process. By
    position, the paths without such numbers must agree, and shapes and types in any case.

    Raises:
        CheckpointError: If the two sides differ; it names the first differences.
    """
    current = [describe(variable) for variable in variables]
    places = {entry["path"]: place for place, entry in enumerate(saved)}
    paths = {entry["path"] for entry in current}
    by_path = len(places) == len(saved) == len(current) == len(paths) and paths == set(places)
    order = [places[e["path"]] for e in current] if by_path else list(range(len(current)))
    differences = []
    for place, entry in zip(order, current, strict=True):
        other = saved[place] if place < len(saved) else None
        if other is None or _comparable(other) != _comparable(entry):
            differences.append(f"  here {_show(entry)}, in the checkpoint {_show(other)}")
    differences += [
        f"  here nothing, in the checkpoint {_show(entry)}" for entry in saved[len(current) :]
    ]
    if differences:
        shown = "\n".join(differences[:_SHOWN_DIFFERENCES])
        raise CheckpointError(
            f"The checkpoint belongs to another run: of its {len(saved)} {kind} variables and "
            f"this model's {len(current)}, {len(differences)} differ:\n{shown}\n"
            "Use the model, adapter and optimizer that it was saved with, or another folder."
        )
    return order


def _comparable(entry: Entry) -> tuple[str, tuple[int, ...], str]:
    path = re.sub(r"_\d+(?=/|_|$)", "", entry["path"])
    return path, tuple(entry["shape"]), entry["dtype"]


def _show(entry: Entry | None) -> str:
    if entry is None:
        return "nothing"
    return f"'{entry['path']}' {entry['dtype']}{tuple(entry['shape'])}"
