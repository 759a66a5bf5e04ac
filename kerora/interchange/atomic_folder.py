"""Writing a folder so that a reader finds the old one or the new one, never a half.

The new folder is written beside its place, forced to disk, and renamed. Where an older one is in
the way, that is renamed to `.NAME.replaced` first; should the process die between the two renames,
the next reader or writer puts it back. Whatever else lay in the older one moves over.

A process that is killed leaves its half-filled new folder behind. Every writer holds a lock on its
own, which ends with the process; the next writer to the same place removes those without one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on this system: nothing tells an abandoned folder from another
    fcntl = None

_IS_POSIX = os.name == "posix"


@contextlib.contextmanager
def replaced_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty folder to fill, which takes the place of `folder` when the context ends well.

    Files of other names that `folder` held are kept.

    Raises:
        NotADirectoryError: If a file has that name.
        FileExistsError: If this process stands in that folder.
        OSError: If the disk is full or the place is not writable, which the message says; `folder`
            is then as it was.

    Example:
    ```python
    with replaced_folder("adapter") as new:
        (new / "adapter_config.json").write_text("{}")
    ```
    """
    place = real_place(folder)
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file, and an adapter is a folder.")
    _check_not_stood_in(place, folder)
    recover_folder(place)
    with folder_beside(place) as new:
        try:
            # Such a folder is private; a saved adapter is as readable as any other new folder.
            new.chmod(0o777 & ~_umask())
            yield new
            for file in new.iterdir():
                _force_to_disk(file)
            _force_to_disk(new)
            replaced = _replaced(place)
            if place.exists():
                os.rename(place, replaced)
            os.rename(new, place)
        except BaseException:
            recover_folder(place)
            raise
    _force_to_disk(place.parent)
    recover_folder(place)


def real_place(path: str | os.PathLike[str]) -> Path:
    """The absolute path that a path comes to, its `~` expanded and its links followed.

    What is renamed to a link's own name takes the place of the link, not of what it leads to.
    """
    return Path(os.path.realpath(os.path.expanduser(path)))


def _check_not_stood_in(place: Path, folder: str | os.PathLike[str]) -> None:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed by another process
        return
    if here.is_relative_to(place):
        raise FileExistsError(
            f"'{folder}' is or holds the current folder ('{here}'). It would be renamed away from "
            f"under this process. Name a folder inside it: '{Path(folder) / 'NAME'}'"
        )


@contextlib.contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new, private folder beside a place that is about to be written, gone when the context ends.

    Folders that killed writers to the same place left behind are removed first.

    Args:
        place: A file or folder by its absolute path, there or not.

    Raises:
        OSError: If the disk is full or the place is not writable, which the message says.
    """
    with _told_of_place(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place)
        new, handle = _locked_folder(_new_prefix(place), place.parent)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if handle is not None:
                os.close(handle)


@contextlib.contextmanager
def _told_of_place(place: Path) -> Iterator[None]:
    """The system names the hidden folder, or one above the place; this names the place."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str) else place
        hidden = str(place.with_name(_new_prefix(place)))
        is_above = path in place.parents
        is_of_place = is_above or path == place or str(path).startswith(hidden)
        if error.strerror is None or not is_of_place:
            raise  # one of our own, or of what was read for it
        reason = f"{error.strerror} ('{path}')" if is_above else error.strerror
        raise type(error)(
            f"'{place}' cannot be written: {reason}. Name another place, or see that this one may "
            "be written and has room."
        ) from error


def remove_abandoned(place: Path) -> None:
    """Remove the folders that killed writers to a place left beside it.

    Args:
        place: A file or folder, there or not, as its parent may be.
    """
    if fcntl is None or not place.parent.is_dir():
        return
    for path in list(place.parent.iterdir()):
        if path.name.startswith(_new_prefix(place)):
            _remove_if_abandoned(path)


def _new_prefix(place: Path) -> str:
    return f".{place.name}.new-"


def _locked_folder(prefix: str, parent: Path) -> tuple[Path, int | None]:
    while True:
        new = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if fcntl is None:
            return new, None
        handle = os.open(new, os.O_RDONLY)
        # Where the file system has no locks, no other writer gets one and takes this for abandoned.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if new.exists():
            return new, handle
        os.close(handle)  # another writer took it for abandoned before it was locked


def _remove_if_abandoned(path: Path) -> None:
    assert fcntl is not None
    if path.is_symlink() or not path.is_dir():
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # gone meanwhile, or another user's
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return  # its writer is alive
    finally:
        os.close(handle)


def recover_folder(folder: str | os.PathLike[str]) -> None:
    """Put back what a writer had moved aside when it was cut off.

    Warns where the folder is whole but what else lay in the older one cannot be moved over.
    """
    place = real_place(folder)
    replaced = _replaced(place)
    if not os.path.lexists(place):
        if replaced.is_dir():
            os.rename(replaced, place)
        return
    try:
        _move_over(replaced, place)
    except OSError as error:
        from kerora.user_warning import warn_user

        warn_user(
            f"'{place}' is whole, but '{replaced}', which lay there before, cannot be tidied up: "
            f"{error.strerror or error}. Move what you need from it, then remove it."
        )


def _move_over(replaced: Path, place: Path) -> None:
    if replaced.is_symlink():
        replaced.unlink()  # what it leads to is not ours
    elif replaced.is_dir():
        for entry in replaced.iterdir():
            if not os.path.lexists(place / entry.name):
                os.rename(entry, place / entry.name)
        shutil.rmtree(replaced, ignore_errors=True)


def _replaced(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _force_to_disk(path: Path) -> None:
    if not _IS_POSIX and path.is_dir():
        return  # a folder can be opened on POSIX alone
    # Windows writes out only what may be written; POSIX takes a read-only file as well.
    handle = os.open(path, os.O_RDONLY if _IS_POSIX else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
