"""Carrying out a recipe: measure, train, measure again, and keep all of it in a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import keras
from pydantic import Field, TypeAdapter, ValidationError

from kerora.adapters import count_trainable_parameters
from kerora.interchange.atomic_folder import replaced_folder
from kerora.json_file import read_json_object
from kerora.quiet import quiet
from kerora.recipe import Recipe
from kerora.recipe_optimizer import make_optimizer, peak_learning_rate
from kerora.run_folder import (
    RunError,
    RunFolder,
    open_run_folder,
    read_step_records,
    write_json,
    write_whole,
)
from kerora.run_measure import Measurement, Probe, ScoreEvery, validation_losses
from kerora.run_parts import RunData, check_data, data_digests, prepare_data, prepare_model
from kerora.run_plot import draw_loss
from kerora.run_text import data_lines, model_lines, samples_page
from kerora.task import Task
from kerora.training.callbacks import StepCallback
from kerora.training.checkpoints import newest_checkpoint, restore_checkpoint, save_checkpoint
from kerora.training.errors import NonFiniteLoss
from kerora.training.resume import fit_steps

VALIDATIONS_IN_A_RUN = 5
_Steps = Annotated[int, Field(ge=1)]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: Where its files lie.
        steps: Steps of the whole run.
        before: Measured before the first step.
        after: Measured after the last.
    """

    folder: RunFolder
    steps: int
    before: Measurement
    after: Measurement


def run(recipe: Recipe, output: str | os.PathLike[str], *, console: Any = None) -> RunResult:
    """Carry out a recipe; called again with the same folder, it continues where it was.

    Args:
        recipe: From `load_recipe`.
        output: The run folder: `recipe.yaml`, `metrics.jsonl`, `validation.jsonl`, `loss.png`,
            `samples.md`, `report.json`, `checkpoints/`, and `adapter/` (PEFT) or, of a run without
            adapter, `model/` (a KerasHub preset).
        console: A `rich.console.Console`. Default: standard output.

    Returns:
        The figures before and after. Of a run that was finished before, at once.

    Raises:
        ValueError: The folder, the data or the model cannot be used; the message says why.
        NonFiniteLoss: The loss or a weight is not finite; `adapter/` is from before.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is saved.

    Example:
    ```python
    result = run(load_recipe("configs/quickstart.yaml"), "runs/quickstart")
    print(result.before.exact_match, result.after.exact_match)
    ```
    """
    with open_run_folder(output, recipe) as folder:
        return carry_out(recipe, folder, console)


def carry_out(recipe: Recipe, folder: RunFolder, console: Any = None) -> RunResult:
    """Carry out a recipe in a run folder that is open; see `run`."""
    began = time.monotonic()
    if console is None:
        from rich.console import Console

        console = Console(highlight=False)
    if folder.report.exists():
        console.print(f"The run in {folder.path} is finished; there is nothing left to do.")
        return _finished(folder)
    keras.utils.set_random_seed(recipe.seed)
    check_data(recipe.data)
    digests = data_digests(recipe.data)
    if folder.before.exists():
        _check_unchanged(folder, digests)
    with quiet():
        model = prepare_model(recipe)
        data = prepare_data(recipe, model)
        steps_per_epoch = data.batches.steps_per_epoch
    stored = _stored(folder.before, "before") if folder.before.exists() else None
    steps = recipe.steps or (recipe.epochs or 1) * steps_per_epoch
    steps = stored[0] if stored else steps
    rate = peak_learning_rate(recipe, steps)
    for line in [
        *model_lines(recipe, count_trainable_parameters(model), model.backbone.variable_dtype),
        *data_lines(data, steps, recipe.batch_size, rate),
    ]:
        console.print(line)
    model.compile(optimizer=make_optimizer(recipe.optimizer, rate, steps))
    probe = Probe(model, data, recipe.evaluation, recipe.samples, folder.validation)
    if stored:
        (before,) = stored[1:]
    else:
        console.print("Measuring before the first step")
        before = _measure_before(folder, model, data, probe, steps, digests)
    _train(recipe, folder, model, data, probe, steps, console, began)
    console.print("Measuring after the last step")
    after = probe.measure(steps)
    save_trained(recipe, folder, model)
    result = RunResult(folder, steps, before, after)
    _write_pages(recipe, result)
    return result


def _check_unchanged(folder: RunFolder, digests: dict[str, str]) -> None:
    """The position in the data is of the rows that the run began with."""
    (there,) = _fields(folder.before, {"data": dict[str, str]})
    changed = [path for path in {**there, **digests} if there.get(path) != digests.get(path)]
    if changed:
        raise RunError(
            f"The data changed since the run in {folder.path} began: {', '.join(changed)}. Put "
            "back what it began with, or give another output=DIR to begin anew."
        )


def _measure_before(
    folder: RunFolder,
    model: Task,
    data: RunData,
    probe: Probe,
    steps: int,
    digests: dict[str, str],
) -> Measurement:
    """Measured once: an interrupted run goes on with these figures."""
    before = probe.measure(0)
    save_checkpoint(folder.checkpoints, model, 0, data.batches.state_at(0))
    record = {"steps": steps, "data": digests, "before": dataclasses.asdict(before)}
    write_json(folder.before, record)
    return before


def _train(
    recipe: Recipe,
    folder: RunFolder,
    model: Task,
    data: RunData,
    probe: Probe,
    steps: int,
    console: Any,
    began: float,
) -> None:
    checkpoint = newest_checkpoint(folder.checkpoints)
    start = checkpoint.step if checkpoint else 0
    if start:
        console.print(f"Continuing after step {start}")
    every = recipe.evaluation.every or max(1, steps // VALIDATIONS_IN_A_RUN)
    callbacks: list[keras.callbacks.Callback] = [_FirstStep(start, began, console)]
    if data.validation is not None:
        callbacks.append(ScoreEvery(probe, every, start, steps))
    try:
        fit_steps(
            model,
            data.batches,
            steps,
            folder.path,
            checkpoint_seconds=recipe.checkpoint_seconds,
            callbacks=callbacks,
            console=console,
        )
    except NonFiniteLoss as error:
        model.jax_state_sync() if hasattr(model, "jax_state_sync") else None
        good = restore_checkpoint(folder.checkpoints, model)
        assert good is not None
        place = save_trained(recipe, folder, model)
        raise NonFiniteLoss(
            error.step, f"{error} What was trained up to step {good.step} is in {place}."
        ) from None


class _FirstStep(StepCallback):
    """Says how long the first step of this process took to come, loading and compiling included."""

    def __init__(self, start_step: int, began: float, console: Any) -> None:
        super().__init__(start_step)
        self._began = began
        self._console = console
        self._said = False

    def between_steps(self, step: int) -> None:
        if not self._said:
            self.catch_up()
            seconds = time.monotonic() - self._began
            self._console.print(f"First step after {seconds:.1f} s, loading and compiling included")
            self._said = True


def save_trained(recipe: Recipe, folder: RunFolder, model: Task) -> Path:
    """Write `adapter/`, or `model/` where all of it was trained; returns which."""
    if recipe.adapter != "none":
        model.save_adapter(folder.adapter)
        return folder.adapter
    with replaced_folder(folder.model) as new:
        model.save_to_preset(str(new))
    return folder.model


def _write_pages(recipe: Recipe, result: RunResult) -> None:
    """The plot, the samples, and last the report, which says that the run is finished."""
    folder, before, after = result.folder, result.before, result.after
    title = f"{recipe.model.source}, {_method(recipe)}"
    records = read_step_records(folder.metrics)
    losses = [(record.step, record.loss) for record in records]
    draw_loss(folder.plot, losses, validation_losses(folder.validation), title)
    write_whole(folder.samples, samples_page(title, before.samples, after.samples))
    report = {
        "steps": result.steps,
        "tokens": sum(record.tokens or 0 for record in records),
        "seconds": records[-1].seconds if records else None,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
    }
    write_json(folder.report, report)


def _method(recipe: Recipe) -> str:
    if recipe.adapter == "none":
        return "all weights"
    return f"LoRA rank {recipe.adapter.rank}"


def _finished(folder: RunFolder) -> RunResult:
    steps, before, after = _stored(folder.report, "before", "after")
    return RunResult(folder, steps, before, after)


def _stored(path: Path, *names: str) -> tuple[Any, ...]:
    """The number of steps in a file of the run, and its measurements of these names."""
    return _fields(path, {"steps": _Steps, **dict.fromkeys(names, Measurement)})


def _fields(path: Path, kinds: dict[str, Any]) -> tuple[Any, ...]:
    """Fields of a file of the run, by the types that they are of."""
    record = read_json_object(path, RunError)
    try:
        # Strictly typed data classes come from JSON alone, not from dicts.
        return tuple(
            TypeAdapter(kind).validate_json(json.dumps(record[name]), strict=True)
            for name, kind in kinds.items()
        )
    except (KeyError, ValidationError) as error:
        raise RunError(
            f"{path} is damaged: {error!r}. Remove the folder, or give another output=DIR."
        ) from error
