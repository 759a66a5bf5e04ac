"""Compiled step functions and optimizers, which know the variables that they were made for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import keras

from kerora.adapters.targets import sublayers

_STEPS = ("train_step", "test_step")
_FUNCTIONS = ("train_function", "test_function", "predict_function", "generate_function")


def forget_compiled_functions(model: keras.Model) -> None:
    """Make the model trace its step functions anew, and its optimizer forget other variables.

    A traced TensorFlow function and a compiled JAX one would go on without the adapter. The
    optimizer keeps its settings and loses its state where other variables train from now on. Of a
    backbone the task that holds it is meant too.
    """
    for part in _models(model):
        for function in _FUNCTIONS:
            if getattr(part, function, None) is not None:
                setattr(part, function, None)
        optimizer = getattr(part, "optimizer", None)
        if optimizer is not None and optimizer.built:
            known = {id(v) for v in optimizer._trainable_variables}
            if known != {id(v) for v in part.trainable_variables}:
                _forget_state(optimizer)
        if keras.backend.backend() == "torch":
            from kerora.adapters.parameters_torch import register_parameters

            register_parameters(part)


@contextlib.contextmanager
def compiled_functions_set_aside(model: keras.Model) -> Iterator[None]:
    """Within this context the model traces its own step functions; afterwards it has the old ones.

    So a callback may switch adapters off and on again in the middle of `fit`.
    """
    parts = _models(model)
    held = [
        (part, function, getattr(part, function))
        for part in parts
        for function in _FUNCTIONS
        if hasattr(part, function)
    ]
    for part, function, _ in held:
        setattr(part, function, None)
    # JAX takes a method for the equal one that it compiled, as long as somebody holds that.
    steps = [(part, name, vars(part).get(name)) for part in parts for name in _STEPS]
    for part, name, _ in steps:
        vars(part)[name] = functools.partial(getattr(part, name))
    try:
        yield
    finally:
        for part, name, before in steps:
            if before is None:
                del vars(part)[name]
            else:
                vars(part)[name] = before
        for part, function, value in held:
            setattr(part, function, value)


def _models(model: keras.Model) -> list[keras.Model]:
    """The model, the task that holds it where it is a task's backbone, and the models in it."""
    task = model.held_by() if hasattr(model, "held_by") else None
    outermost = model if task is None else task
    return [outermost, *(la for la, _ in sublayers(outermost) if isinstance(la, keras.Model))]


def _forget_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer what it was before it was built, with Keras' private names for its parts.

    One made anew by its config would lack what a config does not hold: a schedule without a
    `get_config` or a function, and what is excluded from weight decay.
    """
    if hasattr(optimizer, "inner_optimizer"):  # of a `LossScaleOptimizer`
        _forget_state(optimizer.inner_optimizer)
    settings = {id(optimizer._iterations), id(optimizer._learning_rate)}
    for variable in [v for v in optimizer._variables if id(v) not in settings]:
        optimizer._untrack_variable(variable)
    optimizer._trainable_variables_indices.clear()
    # By the addresses of variables, at which others may come to lie.
    optimizer._exclude_from_weight_decay_cache = {}
    optimizer._iterations.assign(0)
    optimizer.built = False
