"""Keras callbacks of a run that can be interrupted at any step and continued.

`kerora.training.resume.fit_steps` puts them together.
"""

from kerora.training.callbacks.checkpoint_every import CheckpointEvery
from kerora.training.callbacks.metrics_log import MetricsLog, truncate_metrics
from kerora.training.callbacks.progress import Progress
from kerora.training.callbacks.step_callbacks import StepCallback, StepCallbacks
from kerora.training.callbacks.stop_on_non_finite import StopOnNonFinite
from kerora.training.callbacks.validate_every import ValidateEvery

__all__ = [
    "CheckpointEvery",
    "MetricsLog",
    "Progress",
    "StepCallback",
    "StepCallbacks",
    "StopOnNonFinite",
    "ValidateEvery",
    "truncate_metrics",
]
