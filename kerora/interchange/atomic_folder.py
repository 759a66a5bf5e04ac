"""Writing a folder so that a reader finds the old one or the new one, never a half.

The new folder is written beside its place, forced to disk, and renamed. Where an older one is in
the way, that is renamed to `.NAME.replaced` first; should the process die between the two renames,
the next reader or writer puts it back. Whatever else lay in the older one moves over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty folder to fill, which takes the place of `folder` when the context ends well.

    Files of other names that `folder` held are kept.

    Raises:
        NotADirectoryError: If a file has that name.
        OSError: If the disk is full or the place is not writable; `folder` is then as it was.

    Example:
    ```python
    with replaced_folder("adapter") as new:
        (new / "adapter_config.json").write_text("{}")
    ```
    """
    place = Path(os.path.abspath(folder))
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file, and an adapter is a folder.")
    place.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(place)
    new = Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=place.parent))
    try:
        # mkdtemp makes folders private; a saved adapter is as readable as any other new folder.
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
        shutil.rmtree(new, ignore_errors=True)
        recover_folder(place)
        raise
    _force_to_disk(place.parent)
    recover_folder(place)


def recover_folder(folder: str | os.PathLike[str]) -> None:
    """Put back what a writer had moved aside when it was cut off."""
    place = Path(os.path.abspath(folder))
    replaced = _replaced(place)
    if replaced.is_dir():
        if place.exists():
            for entry in replaced.iterdir():
                if not os.path.lexists(place / entry.name):
                    os.rename(entry, place / entry.name)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, place)


def _replaced(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
