"""Compiled step functions and optimizers, which know the variables that they were made for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from kerora.adapters.targets import sublayers

_FUNCTIONS = ("train_function", "test_function", "predict_function", "generate_function")


def forget_compiled_functions(model: keras.Model) -> None:
    """Make the model trace its step functions anew, and its optimizer forget other variables.

    A traced TensorFlow function and a compiled JAX one would go on without the adapter. The
    optimizer keeps its settings and loses its state where other variables train from now on.
    """
    for part in _models(model):
        for function in _FUNCTIONS:
            if getattr(part, function, None) is not None:
                setattr(part, function, None)
        optimizer = getattr(part, "optimizer", None)
        if optimizer is not None and optimizer.built:
            known = {id(v) for v in optimizer._trainable_variables}
            if known != {id(v) for v in part.trainable_variables}:
                part.optimizer = type(optimizer).from_config(optimizer.get_config())
        if keras.backend.backend() == "torch":
            from kerora.adapters.parameters_torch import register_parameters

            register_parameters(part)


@contextlib.contextmanager
def compiled_functions_set_aside(model: keras.Model) -> Iterator[None]:
    """Within this context the model traces its own step functions; afterwards it has the old ones.

    So a callback may switch adapters off and on again in the middle of `fit`.
    """
    held = [
        (part, function, getattr(part, function))
        for part in _models(model)
        for function in _FUNCTIONS
        if hasattr(part, function)
    ]
    for part, function, _ in held:
        setattr(part, function, None)
    try:
        yield
    finally:
        for part, function, value in held:
            setattr(part, function, value)


def _models(model: keras.Model) -> list[keras.Model]:
    return [model, *(la for la, _ in sublayers(model) if isinstance(la, keras.Model))]
