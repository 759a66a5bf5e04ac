"""Train for a number of steps, in as many attempts as it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from kerora.data import Batches
from kerora.training.callbacks import (
    CheckpointEvery,
    MetricsLog,
    Progress,
    StepCallbacks,
    StopOnNonFinite,
    ValidateEvery,
    truncate_metrics,
)
from kerora.training.checkpoints import restore_checkpoint
from kerora.training.interrupts import stop_between_steps


def fit_steps(
    model: keras.Model,
    batches: Batches,
    steps: int,
    folder: str | os.PathLike[str],
    *,
    checkpoint_seconds: float | None = 60.0,
    checkpoint_steps: int | None = None,
    validation_data: Batches | None = None,
    validation_steps: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    console: Any = None,
) -> int:
    """Train until `steps` steps are done since the run began; called again, it goes on.

    It restores the newest checkpoint of the run folder, cuts `metrics.jsonl` back to it, and calls
    `model.fit` once for the steps that are left. The result is that of an uninterrupted run, to the
    bit, on one machine.

    Args:
        model: A compiled task with its adapter, as it was at the beginning of the run.
        batches: All batches of the run, from their beginning.
        steps: Steps of the whole run. Several epochs are more steps.
        folder: The run folder, which gets `metrics.jsonl` and `checkpoints/`.
        checkpoint_seconds: Time between checkpoints; None for none by time.
        checkpoint_steps: Steps between checkpoints; None for none by steps.
        validation_data: Held-out batches.
        validation_steps: Steps between evaluations. Default: only at the end.
        callbacks: More Keras callbacks.
        console: Where progress goes, a `rich.console.Console`.

    Returns:
        The step that the run started from, 0 for a new one.

    Raises:
        CheckpointError: If a checkpoint cannot be written, or belongs to another run.
        NonFiniteLoss: If the loss or a weight is not finite; the last checkpoint is from before.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the step is done and saved.

    Example:
    ```python
    batches = kerora.data.make_batches("train.jsonl", tokenizer, batch_size=8, sequence_length=512)
    fit_steps(model, batches, 3 * batches.steps_per_epoch, "runs/first")
    ```
    """
    folder = Path(folder)
    checkpoint = restore_checkpoint(folder / "checkpoints", model)
    start = checkpoint.step if checkpoint else 0
    truncate_metrics(folder / "metrics.jsonl", start)
    if checkpoint:
        batches = batches.starting_at(checkpoint.data_state)
    if start and hasattr(model, "keep_learning_rate"):
        model.keep_learning_rate()  # chosen for the whole run, and not for the steps that are left
    if start >= steps:
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return start
    log = MetricsLog(folder / "metrics.jsonl", start)
    progress = Progress(steps, start, console)
    with stop_between_steps() as stop_requested:
        parts: list[keras.callbacks.Callback] = [StopOnNonFinite(start), log, progress]
        if validation_data is not None:
            every = validation_steps or steps
            parts.append(ValidateEvery(validation_data, every, log.record, start_step=start))
        saving = CheckpointEvery(
            folder / "checkpoints",
            batches.state_at,
            seconds=checkpoint_seconds,
            steps=checkpoint_steps,
            start_step=start,
            before_save=log.flush,
            stop_requested=stop_requested,
        )
        try:
            model.fit(
                batches.repeat(),
                epochs=1,
                steps_per_epoch=steps - start,
                verbose=0,
                callbacks=StepCallbacks([*parts, *callbacks, saving], model),
            )
        finally:
            progress.close()
            log.close()
    return start
