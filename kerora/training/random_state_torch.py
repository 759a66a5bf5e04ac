"""PyTorch's own random generators, which Keras' dropout draws from."""

from __future__ import annotations

import numpy as np
import torch


def read_random_state() -> dict[str, np.ndarray]:
    """The state of each generator by device."""
    states = {"cpu": torch.get_rng_state().numpy().copy()}
    if torch.cuda.is_initialized():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda:{number}"] = state.numpy().copy()
    return states


def write_random_state(states: dict[str, np.ndarray]) -> None:
    """Put states of `read_random_state` back; devices that are not here are left out."""
    for device, state in states.items():
        values = torch.from_numpy(np.array(state))
        if device == "cpu":
            torch.set_rng_state(values)
        elif torch.cuda.is_available() and int(device.split(":")[1]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(values, device)
