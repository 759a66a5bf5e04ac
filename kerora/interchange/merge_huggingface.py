"""Merging an adapter into a Hugging Face folder, tensor by tensor.

The new files have the headers of the base's, byte for byte, and so the same shards, names, types
and metadata; of the tensors, those that the adapter changes are summed a few rows at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from kerora.adapters.errors import AdapterError
from kerora.interchange.contents import AdapterContents
from kerora.interchange.fingerprint import file_difference
from kerora.interchange.merge_changes import (
    BLOCK,
    Change,
    another_base,
    find_tensor,
    merged_blocks,
    tensor_changes,
)
from kerora.interchange.split_modules import split_places
from kerora.json_file import read_json_object
from kerora.models.errors import ModelSourceError
from kerora.models.huggingface_folder import (
    TensorPlace,
    all_places,
    check_inside,
    tensor_places,
    weight_files,
)

Progress = Callable[[str, int, int], None]
"""Told what is at work, how many bytes are done, and of how many."""


class HuggingFaceMerge:
    """An adapter and the Hugging Face folder that it goes into, checked and ready to be written.

    Args:
        base: The folder.
        contents: The adapter.
        force: Merge into a base that the adapter was not trained on.

    Raises:
        AdapterError: If the adapter does not fit the base.
        ModelSourceError: If the base cannot be read.
    """

    def __init__(self, base: Path, contents: AdapterContents, force: bool) -> None:
        self.files = weight_files(base)
        for file in self.files:
            check_inside(base, file)
        self._contents = contents
        places = split_places(all_places(base), contents)
        config = read_json_object(base / "config.json", ModelSourceError)
        if not force:  # first: tensors that do not fit say less than that the base is another
            _check_base(contents, places)
        self.changes: dict[str, Change] = tensor_changes(contents, places, config)
        self.size = sum(file.stat().st_size for file in self.files)

    def write(self, folder: Path, progress: Progress) -> None:
        """Write the merged files into `folder`."""
        done = 0
        for file in self.files:
            places = split_places(tensor_places(file), self._contents)
            with file.open("rb") as source, (folder / file.name).open("wb") as target:
                start = next(iter(places.values())).start if places else file.stat().st_size
                _copy(source, target, 0, start)
                done += start
                for name, place in places.items():
                    progress(name, done, self.size)
                    if name in self.changes:
                        for block in merged_blocks(name, place, self.changes[name]):
                            target.write(block)
                    else:
                        _copy(source, target, place.start, place.size)
                    done += place.size
        progress("done", done, self.size)


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    while size:
        data = source.read(min(size, BLOCK))
        if not data:
            raise OSError(f"'{source.name}' was cut short while it was read.")
        target.write(data)
        size -= len(data)


def _check_base(contents: AdapterContents, places: dict[str, TensorPlace]) -> None:
    def value(name: str, row: int, column: int) -> float | None:
        try:
            place = places[find_tensor(places, name, contents)]
        except AdapterError:
            return float("nan")
        if place.dtype is None:
            return None
        if len(place.shape) != 2 or row >= place.rows or column >= place.width:
            return float("nan")
        return float(place.read_rows(row, row + 1)[0, column])

    saved = contents.kerora.get("fingerprint")
    found = file_difference(value, saved) if saved else None
    if found:
        raise another_base(contents, found)


def copy_other_files(base: Path, folder: Path, check: Callable[[Path, Path], None]) -> None:
    """Copy what a model's folder holds beside its weights: configuration, tokenizer, notes.

    Weights in other formats, pickles among them, stay behind: they are the base's.
    """
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_dir() or is_hidden or path.suffix.lower() in _WEIGHTS:
            continue
        check(base, path)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack"),
    *(".gguf", ".onnx", ".ot", ".npz", ".tflite"),
)
