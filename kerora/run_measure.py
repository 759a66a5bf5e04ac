"""What a run measures before its first step, on the way, and after its last."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from kerora.evaluation import (
    Answer,
    TokenScores,
    answer_rows,
    answerable,
    openings,
    score_tokens,
)
from kerora.generation import GreedyDecoder
from kerora.recipe import EvaluationRecipe
from kerora.run_folder import read_step_records
from kerora.run_parts import RunData
from kerora.task import Task
from kerora.training.callbacks import StepCallback

DECODED_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was found out about a model at one step.

    Attributes:
        scores: On the validation data; None where there is none.
        exact_match: Share of the asked validation prompts answered with exactly the response; None
            where none were asked.
        asked: How many were.
        samples: The prompts to show, with the answers.
    """

    scores: TokenScores | None
    exact_match: float | None
    asked: int
    samples: list[Answer]


class Probe:
    """Measures a model on held-out data, before, during and after a run alike.

    Args:
        model: Compiled, with its adapter.
        data: What it is measured on.
        evaluation: How much is asked of it.
        samples: Prompts to show, or how many rows of the data.
        record: A file that takes the validation scores, a line per measurement.
    """

    def __init__(
        self,
        model: Task,
        data: RunData,
        evaluation: EvaluationRecipe,
        samples: int | list[Any] = 0,
        record: Path | None = None,
    ) -> None:
        self._model = model
        self._validation = data.validation
        self._encoder = data.batches.encoder
        self._record = record
        self._asked = answerable(data.rows(), self._encoder, evaluation.exact_match)
        if isinstance(samples, int):
            self._shown: list[Any] = answerable(data.rows(), self._encoder, samples)
            self._shown = self._shown or openings(data.rows(), self._encoder, samples)
        else:
            self._shown = list(samples)
        prompts = len(self._asked) + len(self._shown)
        self._decoder = GreedyDecoder(
            model,
            self._encoder.stop_token_ids,
            evaluation.max_new_tokens,
            rows=max(1, min(prompts, DECODED_ROWS)),
        )

    def measure(self, step: int = 0) -> Measurement:
        """Everything, after `step` steps."""
        scores = self.score(step)
        answers = answer_rows(self._decoder, self._encoder, [*self._shown, *self._asked])
        shown, asked = answers[: len(self._shown)], answers[len(self._shown) :]
        exact = sum(answer.exact for answer in asked) / len(asked) if asked else None
        return Measurement(scores, exact, len(asked), shown)

    def score(self, step: int) -> TokenScores | None:
        """The scores on the validation data after `step` steps, recorded."""
        if self._validation is None:
            return None
        scores = score_tokens(self._model, self._validation)
        if self._record is not None:
            with open(self._record, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **dataclasses.asdict(scores)}) + "\n")
        return scores


class ScoreEvery(StepCallback):
    """Scores the validation data every so many steps of the run.

    Args:
        probe: Of the run.
        every: Steps between two scores.
        start_step: Steps done before this `fit`.
        last_step: Not scored here: the run measures everything then.
    """

    def __init__(self, probe: Probe, every: int, start_step: int, last_step: int) -> None:
        super().__init__(start_step)
        self._probe = probe
        self._every = every
        self._last_step = last_step

    def between_steps(self, step: int) -> None:
        if step % self._every == 0 and step < self._last_step:
            self.catch_up()
            if hasattr(self.model, "jax_state_sync"):
                # Within `fit` on JAX the values live outside the variables.
                self.model.jax_state_sync()
            self._probe.score(step)


def validation_losses(path: Path) -> list[tuple[int, float]]:
    """Step and loss of every score; what was scored again after an interruption counts once."""
    return sorted({record.step: record.loss for record in read_step_records(path)}.items())
