"""The folder of a run: one recipe, one process at a time, each file whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from kerora.recipe import Recipe
from kerora.user_warning import warn_user

# Keys that may be another in a run that is continued: it comes to the same.
_CHANGE_NO_RESULT = ("checkpoint_seconds",)
_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_HEADER = (
    "# Written by kerora ({digest}): the recipe of the run in this folder, with every default.\n"
    "# To run it with changes, copy it elsewhere.\n"
)


class RunError(ValueError):
    """A run that cannot be started or continued."""


class RunFolder:
    """Where the files of a run lie.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.recipe = self.path / "recipe.yaml"
        self.before = self.path / "before.json"
        self.metrics = self.path / "metrics.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.plot = self.path / "loss.png"
        self.samples = self.path / "samples.md"
        self.report = self.path / "report.json"

    @property
    def began(self) -> bool:
        """Whether anything was trained in it."""
        return self.metrics.exists() or any(self.checkpoints.glob("*"))


def claim_folder(path: Path) -> Path:
    """Make a folder of this name, or with -2, -3, … after it where that is another process's.

    Raises:
        RunError: It cannot be made.
    """
    claimed, number = path, 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                claimed.mkdir()
                return claimed
            except FileExistsError:
                number += 1
                claimed = path.with_name(f"{path.name}-{number}")
    except OSError as error:
        raise _cannot_write(path, error) from None


@contextlib.contextmanager
def open_run_folder(
    path: str | os.PathLike[str], recipe: Recipe, *, claimed: bool = False
) -> Iterator[RunFolder]:
    """The folder of a new run, or of one that is continued; locked while it is open.

    A new one that ends with nothing in it but the recipe is removed. Nothing heavy is imported for
    it, so that what is wrong with a folder is told at once.

    Args:
        path: The folder.
        recipe: Of the run.
        claimed: Whether the folder was made for this run, by `claim_folder`.

    Raises:
        RunError: It cannot be written, another process runs in it, or it belongs to another recipe
            (the message shows the keys that differ; the time between checkpoints may), its recipe
            was edited there, or a new run would overwrite what is not its own.
    """
    folder = RunFolder(path)
    is_new = claimed or not folder.path.exists()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = open(folder.path / _LOCK, "w")  # noqa: SIM115 - held while the run lasts
    except OSError as error:
        raise _cannot_write(folder.path, error) from None
    with lock:
        _lock(lock, folder.path)
        try:
            _keep_recipe(recipe, folder)
            yield folder
        finally:
            written = {path.name for path in folder.path.glob("*")}
            if is_new and written <= {_LOCK, folder.recipe.name}:
                shutil.rmtree(folder.path, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> RunError:
    reason = error.strerror or error
    return RunError(f"{path}: this run folder cannot be written: {reason}")


def _keep_recipe(recipe: Recipe, folder: RunFolder) -> None:
    if folder.recipe.exists() and folder.began:
        _check_same(recipe, folder)
        _check_unedited(folder)
        return
    _check_free(recipe, folder)
    folder.before.unlink(missing_ok=True)
    text = yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)
    write_whole(folder.recipe, _with_header(text))


def _check_free(recipe: Recipe, folder: RunFolder) -> None:
    """A run that has not begun replaces nothing but its own recipe and measurement."""
    result = folder.model if recipe.adapter == "none" else folder.adapter
    written = [result, folder.plot, folder.samples, folder.report]
    if not _is_own(folder.recipe):
        written += [folder.recipe, folder.before, folder.validation]
    for path in written:
        is_empty_folder = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_empty_folder:
            raise RunError(
                f"{path} is there already, and this run would overwrite it. Give another "
                "output=DIR, or move it elsewhere."
            )


def _with_header(text: str) -> str:
    return _HEADER.format(digest=hashlib.sha256(text.encode()).hexdigest()[:16]) + text


def _is_own(recipe: Path) -> bool:
    """Whether kerora wrote the file, and nobody edited it."""
    if not recipe.is_file():
        return False
    text = recipe.read_text(encoding="utf-8", errors="replace")
    return text == _with_header("".join(text.splitlines(keepends=True)[_HEADER.count("\n") :]))


def _check_unedited(folder: RunFolder) -> None:
    """Run from its own folder, an edited recipe would be compared with itself."""
    if not _is_own(folder.recipe):
        raise RunError(
            f"{folder.recipe} was edited, and the run in this folder began with what it said "
            "before. Copy it elsewhere and run the copy with another output=DIR; to continue this "
            "run, undo the edit."
        )


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{path}: another kerora process is running in this folder") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn_user(
            f"{path}: its file system has no locks ({error.strerror}), so nothing keeps a second "
            "process out of this run folder. Start one alone."
        )


def _check_same(recipe: Recipe, folder: RunFolder) -> None:
    try:
        before = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{folder.recipe} cannot be read: {error}") from None
    there, here = _flat(before), _flat(recipe.model_dump())
    missing = object()
    keys = [
        k
        for k in {**there, **here}
        if there.get(k, missing) != here.get(k, missing) and k not in _CHANGE_NO_RESULT
    ]
    if keys:
        lines = [
            f"  {k}: {there.get(k, '(none)')!r} there, {here.get(k, '(none)')!r} now" for k in keys
        ]
        raise RunError(
            f"{folder.path} holds a run of another recipe. What differs:\n"
            + "\n".join(lines)
            + "\nContinue it with the recipe that it was started with, or give another output=DIR."
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    inner = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: part for section in inner for key, part in section.items()}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process dies.

    Raises:
        RunError: It cannot be written.
    """
    try:
        partial = path.with_name(f".{path.name}.writing")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """A line of `metrics.jsonl` or `validation.jsonl`, as far as it is read again.

    Attributes:
        step: Steps done.
        loss: In nats per token.
        tokens: Real tokens of the step.
        seconds: Since the run began.
    """

    step: int
    loss: float
    tokens: int | None = None
    seconds: float | None = None


def read_step_records(path: Path) -> list[StepRecord]:
    """The records of a JSON lines file; a line that is cut off or is no such record is left out."""
    reader = TypeAdapter(StepRecord)
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValidationError):
            records.append(reader.validate_json(line, strict=True))
    return records
