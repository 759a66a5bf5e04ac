"""The learning rate that is taken where nobody names one, for Adam and its like."""

from __future__ import annotations

# The 5e-5 of KerasHub's LoRA guide for each of the about ten examples that a default batch packs.
# Full fine-tuning wants a far lower one (https://thinkingmachines.ai/blog/lora/).
ADAPTER_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 2e-5
SHORT_RUN = 128
_EXPONENT = 1 / 3


def default_learning_rate(*, adapted: bool, steps: int | None) -> float:
    """The learning rate for a run of a length: the higher, the shorter a short run is.

    The best rate falls with about the third root of the length of training (Bjorck et al., Scaling
    optimal LR across token horizons, 2025, https://arxiv.org/abs/2409.19913).

    Args:
        adapted: Whether an adapter trains, and not the whole model.
        steps: Updates of the weights in the run; None where that is not known.

    Returns:
        5e-4 for an adapter and 2e-5 for a whole model in a run of 128 steps or more, or of unknown
        length; twice that in 16 steps, four times in two.
    """
    rate = ADAPTER_LEARNING_RATE if adapted else FULL_LEARNING_RATE
    return rate * max(1.0, SHORT_RUN / (steps or SHORT_RUN)) ** _EXPONENT
