"""Random generators of the backend that belong to no model."""

from __future__ import annotations

import keras
import numpy as np


def read_random_state() -> dict[str, np.ndarray]:
    """Their state, as bytes by name; empty on JAX and TensorFlow, where models hold all of it."""
    if keras.backend.backend() != "torch":
        return {}
    from kerora.training import random_state_torch

    return random_state_torch.read_random_state()


def write_random_state(states: dict[str, np.ndarray]) -> None:
    """Put states of `read_random_state` back."""
    if states:
        from kerora.training import random_state_torch

        random_state_torch.write_random_state(states)
