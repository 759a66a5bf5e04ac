"""Merging an adapter into a KerasHub preset folder, tensor by tensor.

Its HDF5 files are copied, and the tensors that the adapter changes are summed in the copy a few
rows at a time. Which tensor belongs to which layer is what Keras' own `save_weights` says of a
model that is built without values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import keras_hub
import ml_dtypes
import numpy as np

from kerora.adapters.config import LoraConfig
from kerora.adapters.errors import AdapterError
from kerora.adapters.factorization import layer_kernel_shape
from kerora.adapters.targets import sublayers
from kerora.interchange.base_tables import check_table
from kerora.interchange.contents import AdapterContents
from kerora.interchange.factors import (
    by_layer,
    by_module,
    factorization_of,
    layer_factors,
    layer_rank,
)
from kerora.interchange.fingerprint import preset_difference
from kerora.interchange.layer_names import NamedLayer
from kerora.interchange.merge_changes import BLOCK, another_base
from kerora.interchange.other_heads import check_loadable
from kerora.interchange.peft import biases_in_file, layers_in_file
from kerora.interchange.split_modules import split_contents
from kerora.json_file import read_json_object
from kerora.models.converters import matrices_left_empty
from kerora.models.errors import ModelSourceError
from kerora.models.preset_folder import TASK_FILE, preset_checked, weight_files

_NUMBER = "number"
_TYPES = ("float16", "bfloat16", "float32", "float64")
# Their constructors need values of Keras' operations, which have none while JAX traces.
_COMPUTES_WHEN_BUILT = ("DINOV2Backbone", "DINOV3Backbone", "SwinTransformerBackbone")

_Part = tuple[slice, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Sum:
    """A delta in the layout of one stored kernel: `join` of `a` and `b`, float32."""

    join: str
    a: np.ndarray
    b: np.ndarray

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The delta along the first axis of the kernel, from `start` up to `stop`."""
        factors, kernel = self.join.split("->")
        parts = [
            factor[tuple(slice(start, stop) if axis == kernel[0] else slice(None) for axis in axes)]
            for axes, factor in zip(factors.split(","), (self.a, self.b), strict=True)
        ]
        return np.einsum(self.join, *parts, optimize=True)


class PresetMerge:
    """An adapter and the KerasHub preset folder that it goes into, checked and ready to be written.

    Args:
        base: The folder.
        contents: The adapter.
        force: Merge into a base that the adapter was not trained on.

    Raises:
        AdapterError: If the adapter does not fit the base.
        ModelSourceError: If the base cannot be read.
    """

    def __init__(self, base: Path, contents: AdapterContents, force: bool) -> None:
        check_loadable(contents)
        contents = split_contents(contents)
        self.base = base
        self.files = weight_files(base)
        self.size = sum(file.stat().st_size for file in self.files)
        # Before what does not fit: that says less than that the base is another.
        check_base = (lambda plan: None) if force else functools.partial(self._check_base, contents)
        plan = _Plan(base, contents, check_base)
        self.sums: dict[str, _Sum] = plan.sums
        self.biases: dict[str, list[_Part]] = plan.biases
        self._check_stored(plan.shapes)
        if not force:
            self._check_tables(contents, plan.tables)

    @property
    def changes(self) -> set[str]:
        """HDF5 paths of the tensors that the adapter changes."""
        return {*self.sums, *self.biases}

    def write(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        """Write the merged files into `folder`."""
        done = 0
        for file in self.files:
            progress(file.name, done, self.size)
            shutil.copyfile(file, folder / file.name)
            if file.name == TASK_FILE:
                continue
            with h5py.File(folder / file.name, "r+") as opened:
                for path in sorted(self.changes):
                    if path in opened:
                        progress(path, done, self.size)
                        self._write_tensor(path, opened[path])
            done += file.stat().st_size
        progress("done", self.size, self.size)

    def _write_tensor(self, path: str, stored: h5py.Dataset) -> None:
        dtype = _dtype(stored)
        if path in self.biases:
            for outputs, value in self.biases[path]:
                stored[outputs] = _as_stored(value.astype(dtype), stored)
            return
        step = max(1, BLOCK // (4 * max(1, math.prod(stored.shape[1:]))))
        for start in range(0, stored.shape[0], step):
            stop = min(start + step, stored.shape[0])
            block = np.asarray(stored[start:stop]).view(dtype).astype("float32")
            with np.errstate(over="ignore"):
                merged = (block + self.sums[path].rows(start, stop)).astype(dtype)
            if np.isfinite(block).all() and not np.isfinite(merged.astype("float32")).all():
                raise AdapterError(
                    f"Merged, '{path}' holds NaN or infinity in {dtype}. Merge into a base of "
                    "float32 or bfloat16, or train the adapter again with a lower scale."
                )
            stored[start:stop] = _as_stored(merged, stored)

    def _check_stored(self, shapes: dict[str, tuple[int, ...]]) -> None:
        missing = set(self.changes)
        for stored, path in self._stored(self.changes):
            if stored.shape != shapes[path]:
                raise ModelSourceError(
                    f"'{self.base}' stores '{path}' with shape {stored.shape}, and its config.json "
                    f"asks for {shapes[path]}."
                )
            if _dtype(stored).name not in _TYPES:
                raise AdapterError(
                    f"The base stores '{path}' as {stored.dtype}, which cannot hold the merged "
                    "values. Merge into the unquantised base."
                )
            missing.discard(path)
        if missing:
            raise ModelSourceError(f"'{self.base}' stores no weight '{sorted(missing)[0]}'.")

    def _check_tables(self, contents: AdapterContents, tables: dict[str, NamedLayer]) -> None:
        for stored, path in self._stored(tables):
            dtype = _dtype(stored)

            def read(
                start: int, stop: int, stored: h5py.Dataset = stored, dtype: np.dtype = dtype
            ) -> np.ndarray:
                return np.asarray(stored[start:stop]).view(dtype).astype("float32")

            check_table(contents, tables[path], read)

    def _check_base(self, contents: AdapterContents, plan: _Plan) -> None:
        def read(variable_path: str, index: tuple[int, ...]) -> float | None:
            path = plan.stored_as.get(variable_path)
            for stored, _ in self._stored([path] if path else []):
                if len(index) != len(stored.shape) or any(
                    k >= size for k, size in zip(index, stored.shape, strict=True)
                ):
                    return float("nan")
                return float(np.asarray(stored[index]).view(_dtype(stored)).astype("float32"))
            return None

        saved = contents.kerora.get("fingerprint")
        found = preset_difference(read, plan.backbone, saved) if saved else None
        if found:
            raise another_base(contents, found)

    def _stored(self, paths: Any) -> Iterator[tuple[h5py.Dataset, str]]:
        for file in self.files:
            if file.name == TASK_FILE:
                continue
            try:
                opened = h5py.File(file, "r")
            except OSError as error:
                raise ModelSourceError(f"{file} is damaged or no HDF5 file: {error}") from error
            with opened:
                for path in paths:
                    if path in opened:
                        yield _checked(opened, path), path


class _Plan:
    """What an adapter changes in a preset, read off a model that is built without values.

    Args:
        base: Folder of the preset.
        contents: The adapter.
        check_base: Told of the plan once `backbone` and `stored_as` are known.

    Attributes:
        sums: Deltas, by the HDF5 path of the kernel.
        biases: New values and which of a bias they are, by the HDF5 path of the bias.
        shapes: Shape of each of these.
        tables: The layer of each kernel that is a table, by its HDF5 path.
        stored_as: HDF5 path of each variable, by the variable's path.
        backbone: Name of the model's class.
    """

    def __init__(
        self, base: Path, contents: AdapterContents, check_base: Callable[[_Plan], None]
    ) -> None:
        self.sums: dict[str, _Sum] = {}
        self.biases: dict[str, list[_Part]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.tables: dict[str, NamedLayer] = {}
        self.stored_as: dict[str, str] = {}
        self.backbone = ""
        _build_without_values(base, lambda backbone: self._read(backbone, contents, check_base))

    def _read(
        self,
        backbone: keras.Model,
        contents: AdapterContents,
        check_base: Callable[[_Plan], None],
    ) -> None:
        self.backbone = type(backbone).__name__
        slots = {id(layer): _slots(layer) for layer, _ in sublayers(backbone)}
        paths = _stored_paths(backbone)
        places = {
            id(variable): (f"{paths[id(layer)]}/{slot}", variable)
            for layer, _ in sublayers(backbone)
            if id(layer) in paths
            for slot, variable in slots[id(layer)].items()
        }
        for path, variable in places.values():
            self.stored_as.setdefault(variable.path, path)
        check_base(self)
        layers = layers_in_file(backbone, contents)
        biases = biases_in_file(backbone, contents)
        for bias, value in biases:
            if id(bias.variable) not in places:
                raise AdapterError(
                    f"{contents.folder} holds trained biases that this preset does not store as "
                    "such."
                )
            path, _ = places[id(bias.variable)]
            self.biases.setdefault(path, []).append((bias.outputs, value))
            self.shapes[path] = tuple(bias.variable.shape)
        modules = by_module(layers)
        for named in by_layer(layers):
            rank = layer_rank(contents, named)
            factorization = factorization_of(named[0], 1)
            join = "vr,rd->vd" if factorization is None else factorization.join
            layer = named[0].candidate.layer
            path = f"{paths[id(layer)]}/0"
            config = LoraConfig(rank=rank, alpha=rank)
            self.sums[path] = _Sum(join, *layer_factors(contents, named, modules, config))
            if named[0].is_embedding:
                self.tables[path] = named[0]
                self.shapes[path] = (layer.input_dim, layer.output_dim)
            else:
                self.shapes[path] = layer_kernel_shape(layer)


def _build_without_values(base: Path, read: Callable[[keras.Model], None]) -> None:
    def build() -> int:
        with preset_checked(str(base)):
            backbone = keras_hub.models.Backbone.from_preset(str(base), load_weights=False)
        read(backbone)
        return 0

    kind = read_json_object(base / "config.json", ModelSourceError).get("class_name")
    if keras.backend.backend() == "jax" and kind not in _COMPUTES_WHEN_BUILT:
        import jax

        # Weights are shapes alone while JAX traces.
        jax.eval_shape(build)
    else:
        with matrices_left_empty():
            build()


def _slots(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """A layer's variables under the names by which it saves them."""
    saved: dict[str, Any] = {}
    layer.save_own_variables(saved)
    named = {slot: value for slot, value in saved.items() if isinstance(value, keras.Variable)}
    kernel = getattr(layer, "_kernel", getattr(layer, "_embeddings", None))
    if isinstance(kernel, keras.Variable) and "0" in saved:
        # Layers that may hold Keras' LoRA save their first weight as a sum, not as the variable.
        named["0"] = kernel
    return named


def _stored_paths(backbone: keras.Model) -> dict[int, str]:
    """The HDF5 group in which `save_weights` puts each layer's own variables."""
    layers = [layer for layer, _ in sublayers(backbone)]
    for number, layer in enumerate(layers):
        layer.save_own_variables = functools.partial(_save_number, number)
    paths: dict[int, str] = {}

    def note(name: str, place: Any) -> None:
        if isinstance(place, h5py.Dataset) and name.endswith(f"/{_NUMBER}"):
            paths[id(layers[int(place[()])])] = name.rpartition("/")[0]

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "numbers.weights.h5"
        # Keras' own walk over the layers decides the paths; each saves its number alone.
        backbone.save_weights(file)
        with h5py.File(file, "r") as opened:
            opened.visititems(note)
    return paths


def _save_number(number: int, store: Any) -> None:
    store[_NUMBER] = np.array(number)


def _checked(opened: h5py.File, path: str) -> h5py.Dataset:
    """A tensor that lies in the file itself."""
    place: Any = opened
    for part in path.split("/"):
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            raise ModelSourceError(f"{opened.filename}: '{path}' is a link to another place.")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.external or place.is_virtual:
        raise ModelSourceError(f"{opened.filename}: '{path}' holds no values of its own.")
    return place


def _dtype(stored: h5py.Dataset) -> np.dtype:
    # HDF5 has no bfloat16; Keras writes its bytes and notes the type.
    if stored.attrs.get("dtype") == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return stored.dtype


def _as_stored(values: np.ndarray, stored: h5py.Dataset) -> np.ndarray:
    return values.view(stored.dtype)
