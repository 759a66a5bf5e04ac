"""PyTorch's view of an adapted model's parameters."""

from __future__ import annotations

import keras
import torch


def register_parameters(model: keras.Model) -> None:
    """Let `model.parameters()`, and so `zero_grad()`, reach every variable of a built model.

    Keras registers a model's variables once, by path. Those of adapters come later and would be
    missed: their gradients would pile up from step to step.
    """
    parameters: dict[str, torch.Tensor] = {}
    for variable in model.variables:
        # PyTorch allows no dot in a name, and Keras allows two variables on one path.
        name = variable.path.replace(".", "_")
        while name in parameters:
            name += "_"
        parameters[name] = variable.value
    model._torch_params = torch.nn.ParameterDict(parameters)
