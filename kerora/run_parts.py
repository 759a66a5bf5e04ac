"""From a recipe to the model and the data of its run."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kerora.adapters import LoraConfig, add_adapter
from kerora.data import Batches, DataError, open_source
from kerora.models.bundled import BUNDLED_NAMES, bundled_path
from kerora.models.cpu_bfloat16 import multiplies_bfloat16, on_cpu
from kerora.models.loading import has_template_place, load_task_and_template
from kerora.models.saved_preset import complete_backbone_config
from kerora.models.stored_type import is_stored_in_bfloat16
from kerora.recipe import DataRecipe, ModelRecipe, Recipe
from kerora.task import Task, adapt
from kerora.text_training import warn_of_chat_template
from kerora.training.fit_data import DataOptions, text_batches
from kerora.training.rematerialisation import rematerialise

DataNames = str | Sequence[str] | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run trains on and is measured on.

    Attributes:
        batches: Of training, from the beginning of the run.
        validation: Held-out batches; None where the recipe has none.
    """

    batches: Batches
    validation: Batches | None

    def rows(self) -> Iterator[Any]:
        """The held-out rows themselves (of training, where none are), bad ones left out."""
        return (self.validation or self.batches).source_rows()


def data_paths(source: DataNames) -> DataNames:
    """What a recipe calls its data, bundled names replaced by their paths."""
    if isinstance(source, Mapping):
        return {str(data_paths(name)): weight for name, weight in source.items()}
    names = [source] if isinstance(source, str) else list(source)
    paths = [str(bundled_path(name)) if name in BUNDLED_NAMES else name for name in names]
    return paths[0] if len(paths) == 1 else paths


def check_data(recipe: DataRecipe) -> None:
    """Open what the recipe names, which takes far less time than loading a model.

    Raises:
        DataError: It cannot be read.
    """
    open_source(data_paths(recipe.train))
    if not isinstance(recipe.validation, int | float):
        open_source(data_paths(recipe.validation))


def data_digests(recipe: DataRecipe) -> dict[str, str]:
    """The SHA-256 of every file of rows that the recipe names, by its path."""
    sources = [data_paths(recipe.train)]
    if not isinstance(recipe.validation, int | float):
        sources.append(data_paths(recipe.validation))
    names = [name for s in sources for name in ([s] if isinstance(s, str) else s)]
    digests = {}
    for name in map(os.path.expanduser, names):
        for path in [name] if os.path.isfile(name) else glob.glob(name, recursive=True):
            with open(path, "rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def prepare_model(recipe: Recipe) -> Task:
    """The model of a run, with its adapter or all of it trainable.

    Raises:
        ValueError: There is no such model, or no layer to adapt.
    """
    model = load_model(recipe.model, full=recipe.adapter == "none")
    if recipe.adapter == "none":
        model.trainable = True
    else:
        add_adapter(model, LoraConfig(**recipe.adapter.model_dump()))
    if recipe.rematerialise != "auto":
        rematerialise(model.backbone, recipe.rematerialise)
    return model


def load_model(recipe: ModelRecipe, *, full: bool = False) -> Task:
    """The model of a recipe, without adapter.

    Args:
        recipe: Of the model.
        full: Whether all of it is to be trained.
    """
    dtype: str = recipe.dtype
    if dtype == "auto":
        dtype = "float32" if full or not _takes_bfloat16(recipe.source) else "bfloat16"
    model, template = load_task_and_template(recipe.source, dtype=dtype)
    if recipe.weights == "random":
        backbone = type(model.backbone).from_config(complete_backbone_config(model.backbone))
        model = type(model)(backbone=backbone, preprocessor=model.preprocessor)
    task = adapt(model)
    task.source = recipe.source
    task.source_has_template_place = has_template_place(recipe.source)
    task.chat_template = recipe.chat_template or template
    if recipe.quantize != "none":
        task.quantize(recipe.quantize)
    return task


def prepare_data(recipe: Recipe, model: Task) -> RunData:
    """The batches of a run.

    Raises:
        DataError: A row cannot be used, and the recipe says to stop there.
    """
    options = DataOptions(
        packing=recipe.packing,
        train_on=recipe.data.train_on,
        template=recipe.data.template,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
        on_bad_row=recipe.data.on_bad_row,
        on_long_row=recipe.data.on_long_row,
    )

    def batches_of(source: DataNames, *, shuffle: bool) -> Batches:
        paths, size = data_paths(source), recipe.batch_size
        return text_batches(model, paths, options, batch_size=size, shuffle=shuffle)

    batches = batches_of(recipe.data.train, shuffle=True)
    warn_of_chat_template(model, batches)
    held_out = recipe.data.validation
    if not isinstance(held_out, int | float):
        return RunData(batches, batches_of(held_out, shuffle=False))
    return _with_share_held_out(batches, held_out) if held_out else RunData(batches, None)


def _with_share_held_out(batches: Batches, share: float) -> RunData:
    try:
        return RunData(*batches.split(share))
    except DataError as error:
        batches.report()  # a row that cannot be used is told first: mending it comes before
        raise DataError(
            f"data.validation: {error} Give 0 to hold none out, a file of rows, or more rows in "
            "data.train."
        ) from None


def _takes_bfloat16(source: str) -> bool:
    return not on_cpu() or (multiplies_bfloat16() and is_stored_in_bfloat16(source))
