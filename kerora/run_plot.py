"""The picture of a run: how the loss fell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_RAW, _SMOOTH, _VALIDATION = "#b8c4d6", "#2f5d9b", "#d1602b"


def draw_loss(
    path: Path,
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    title: str,
) -> None:
    """Draw training and validation loss against the step, as a PNG.

    Args:
        path: Where it is written.
        training: Step and loss of every step.
        validation: Step and loss of every measurement on the validation data.
        title: Above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    if training:
        steps, losses = (np.asarray(column, float) for column in zip(*training, strict=True))
        axes.plot(steps, losses, color=_RAW, linewidth=0.8, label="training, each step")
        axes.plot(steps, smoothed(losses), color=_SMOOTH, linewidth=2, label="training, smoothed")
    if validation:
        steps, losses = (np.asarray(column, float) for column in zip(*validation, strict=True))
        axes.plot(
            steps, losses, "o-", color=_VALIDATION, markersize=5, linewidth=1.2, label="validation"
        )
        axes.annotate(
            f"{losses[-1]:.3f}",
            (steps[-1], losses[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=_VALIDATION,
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=_limits(training, validation))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred mean over about a twentieth of the values, narrower towards the ends."""
    width = max(1, len(values) // 40)
    totals = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, places[::-1]), width)
    return (totals[places + reach + 1] - totals[places - reach]) / (2 * reach + 1)


def _limits(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> tuple[float, float] | None:
    """From a little below the lowest loss to above the 99.5th percentile: spikes are cut."""
    losses = np.asarray([loss for _, loss in (*training, *validation)], float)
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return None
    low, high = float(losses.min()), float(np.quantile(losses, 0.995))
    high = max([high, *(loss for _, loss in validation if np.isfinite(loss))])
    margin = 0.06 * max(high - low, 1e-3)
    return max(0.0, low - margin), high + margin
