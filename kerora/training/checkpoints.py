"""Checkpoints of a training run: what training changes, whole or not at all.

`save_checkpoint(folder, model, step, data_state, extra)` writes `folder/step-00000120/`, and
`restore_checkpoint(folder, model)` puts the newest whole one back into the model, to the bit. Such
a folder holds `checkpoint.json` and the values in `values-0000.safetensors`, …:

- the trainable variables, the optimizer's (its count, learning rate, accumulators, averages), and
  the state of every random generator and moving statistic; not the frozen base;
- the step, the position in the data and whatever else the run wants back, as JSON;
- checksums of it all.

It is written under a hidden name, brought to the disk and renamed, so that a name
`step-…` stands for a whole checkpoint whenever the process dies. Two are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerora.json_file import read_json_object, shown
from kerora.training.checkpoint_state import (
    Entry,
    changing_variables,
    describe,
    match,
    numpy_type,
    read_value,
)
from kerora.training.errors import CheckpointError, NonFiniteLoss
from kerora.training.random_state import read_random_state, write_random_state
from kerora.user_warning import warn_user

KEPT = 2
_DOCUMENT = "checkpoint.json"
_FORMAT = 1
_FILE_BYTES = 1 << 30
_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the values of variables.

    Attributes:
        path: Its folder.
        step: Steps done when it was saved.
        data_state: The position in the data, as `Batches.state_at(step)` gave it.
        extra: What the run stored with it.
    """

    path: Path
    step: int
    data_state: dict[str, Any]
    extra: dict[str, Any]


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: keras.Model,
    step: int,
    data_state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; the one before it stays, those older go once this one is whole.

    May be called within `fit`, between two steps.

    Args:
        folder: Where a run's checkpoints lie; made if it is not there.
        model: A compiled model.
        step: Steps done.
        data_state: The position in the data, for JSON.
        extra: Anything else, for JSON.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: If it cannot be written; earlier ones are untouched.
        NonFiniteLoss: If a trainable variable holds a number that is not finite; nothing is
            written.

    Example:
    ```python
    save_checkpoint("run/checkpoints", model, 120, batches.state_at(120))
    ```
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within `fit` on JAX the values live outside the variables
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    writing = folder / f".writing-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(folder)
        writing.mkdir()
        document = {
            "format": _FORMAT,
            "step": step,
            "data_state": data_state or {},
            "extra": extra or {},
            **_identity(model),
            **_write_values(writing, model, step),
        }
        _write(writing / _DOCUMENT, _sealed(document))
        _sync_folder(writing)
        _put_in_place(writing, final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise CheckpointError(_cannot_write(final, error)) from error
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    _remove_superseded(folder, step)
    return final


def _write_values(folder: Path, model: keras.Model, step: int) -> dict[str, Any]:
    from safetensors.numpy import save

    files: dict[str, str] = {}
    kinds: dict[str, list[Entry]] = {}
    tensors: dict[str, np.ndarray] = {}

    def write_file() -> None:
        name = f"values-{len(files):04d}.safetensors"
        content = save(tensors)
        _write(folder / name, content)
        files[name] = hashlib.sha256(content).hexdigest()
        tensors.clear()

    for kind, entry, value in _values(model, step):
        if tensors and _total_bytes(tensors) + value.nbytes > _FILE_BYTES:
            write_file()
        entries = kinds.setdefault(kind, [])
        key = f"{kind}.{len(entries):05d}"
        tensors[key] = value
        entries.append({"key": key, **entry})
    write_file()
    return {"variables": kinds, "files": files}


def _values(model: keras.Model, step: int) -> Iterator[tuple[str, Entry, np.ndarray]]:
    """Kind, description and value of all that a checkpoint holds."""
    for kind, variables in changing_variables(model).items():
        for variable in variables:
            value = read_value(variable)
            if kind == "trainable" and not np.isfinite(value).all():
                raise NonFiniteLoss(
                    step,
                    f"After step {step} the weights '{variable.path}' are not finite. Checkpoints "
                    "up to here hold finite ones. A lower learning rate, gradient clipping "
                    "(`global_clipnorm`) or warm-up may help.",
                )
            yield kind, describe(variable), value
    for name, state in read_random_state().items():
        yield "random", {"path": name, "dtype": "uint8", "shape": list(state.shape)}, state


def _total_bytes(tensors: dict[str, np.ndarray]) -> int:
    return sum(value.nbytes for value in tensors.values())


def restore_checkpoint(folder: str | os.PathLike[str], model: keras.Model) -> Checkpoint | None:
    """Put the newest whole checkpoint back into the model, to the bit.

    A damaged one is passed over with a warning.

    Args:
        folder: Where the run's checkpoints lie.
        model: A compiled model, adapted as it was when the checkpoint was saved.

    Returns:
        What else the checkpoint holds, or None if the folder has no checkpoint.

    Raises:
        CheckpointError: If the checkpoint belongs to another model, adapter, optimizer or
            backend (the model is then as it was), or if there are checkpoints and all are damaged.

    Example:
    ```python
    checkpoint = restore_checkpoint("run/checkpoints", model)
    if checkpoint is not None:
        batches = batches.starting_at(checkpoint.data_state)
    ```
    """
    found = _newest(Path(folder))
    if found is None:
        return None
    path, document, contents = found
    _check_identity(model, document)
    targets = changing_variables(model)
    orders = {
        kind: match(kind, document["variables"].get(kind, []), variables)
        for kind, variables in targets.items()
    }
    for kind, variables in targets.items():
        saved = document["variables"].get(kind, [])
        for place, variable in zip(orders[kind], variables, strict=True):
            # An array of its own: JAX may take over its memory, and donate it in the next step.
            variable.assign(np.array(contents[saved[place]["key"]]))
    random = document["variables"].get("random", [])
    write_random_state({entry["path"]: contents[entry["key"]] for entry in random})
    return _as_checkpoint(path, document)


def newest_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """What the newest whole checkpoint holds beside values, without a model.

    Raises:
        CheckpointError: If there are checkpoints and all are damaged.
    """
    found = _newest(Path(folder))
    return None if found is None else _as_checkpoint(found[0], found[1])


def _as_checkpoint(path: Path, document: dict[str, Any]) -> Checkpoint:
    return Checkpoint(path, document["step"], document["data_state"], document["extra"])


def _newest(folder: Path) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]] | None:
    reasons = []
    for path in _folders(folder):
        try:
            return path, *_read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reasons.append(f"{path.name} ({error})")
            warn_user(f"The checkpoint {path} is damaged and passed over: {error}")
    if reasons:
        raise CheckpointError(
            f"None of the checkpoints in {folder} is whole: {', '.join(reasons)}. Remove that "
            "folder to begin anew."
        )
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, deserialize

    document = _unsealed(path / _DOCUMENT)
    types = {e["key"]: e["dtype"] for kind in document["variables"].values() for e in kind}
    contents: dict[str, np.ndarray] = {}
    for name, checksum in document["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{_DOCUMENT} names the file {name!r}, which lies elsewhere")
        content = (path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(f"{name} does not have the content that was written")
        try:
            tensors = deserialize(content)
        except SafetensorError as error:
            raise ValueError(f"{name} is no safetensors file: {error}") from error
        for key, tensor in tensors:
            flat = np.frombuffer(tensor["data"], numpy_type(types[key]))
            contents[key] = flat.reshape(tensor["shape"])
    for entry in [entry for kind in document["variables"].values() for entry in kind]:
        if not isinstance(entry["path"], str) or contents[entry["key"]].shape != (*entry["shape"],):
            raise ValueError(f"the entry {shown(entry)} of {_DOCUMENT} is not that of its values")
    return document, contents


def _folders(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [(_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    steps = [(int(m[1]), m[2] is None, path) for m, path in found if m]
    return [path for _, _, path in sorted(steps, reverse=True)]


def _sealed(document: dict[str, Any]) -> bytes:
    return json.dumps({"checksum": _checksum(document), **document}, indent=1).encode()


def _unsealed(path: Path) -> dict[str, Any]:
    document = read_json_object(path, ValueError)
    if document.pop("checksum", None) != _checksum(document):
        raise ValueError(f"{_DOCUMENT} does not have the content that was written")
    texts = dict.fromkeys(("backend", "optimizer", "model"), str)
    kinds = {"step": int, "data_state": dict, "extra": dict, "variables": dict, "files": dict}
    for name, kind in {**kinds, **texts}.items():
        if not isinstance(document[name], kind):
            raise ValueError(f"`{name}` in {_DOCUMENT} is {shown(document[name])}")
    return document


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _identity(model: keras.Model) -> dict[str, str]:
    return {
        "backend": keras.backend.backend(),
        "optimizer": type(model.optimizer).__name__,
        "model": model.__class__.__name__,
    }


def _check_identity(model: keras.Model, document: dict[str, Any]) -> None:
    for what, here in _identity(model).items():
        if document[what] != here:
            raise CheckpointError(
                f"The checkpoint belongs to another run: its {what} is {document[what]!r}, here it "
                f"is {here!r}. Continue with what it was saved with, or use another folder."
            )


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(writing: Path, final: Path) -> None:
    if not final.exists():
        writing.rename(final)
        return
    # A folder cannot be exchanged in one move, so the old one stays readable under another name.
    replaced = final.with_name(f"{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    final.rename(replaced)
    writing.rename(final)


def _remove_superseded(folder: Path, step: int) -> None:
    """Remove what is older than the last two, and what an abandoned continuation left behind."""
    names = [path.name for path in _folders(folder)]
    earlier = [name for name in names if int(name[5:].split(".")[0]) < step]
    kept = {f"step-{step:08d}", *earlier[: KEPT - 1]}
    for name in names:
        if name not in kept:
            # Renamed first, so that a half-removed folder never looks like a checkpoint.
            removing = folder / f".removing-{name}"
            with contextlib.suppress(OSError):
                (folder / name).rename(removing)
            shutil.rmtree(removing, ignore_errors=True)


def _clear_unfinished(folder: Path) -> None:
    for pattern in (".writing-*", ".removing-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> str:
    remaining = _folders(path.parent) if path.parent.is_dir() else []
    intact = f"The last one is intact: {remaining[0].name}." if remaining else "There is none yet."
    return (
        f"The checkpoint {path} cannot be written: {error.strerror or error}. {intact} Free space "
        "or make the folder writable, then start the same run again to continue."
    )
