"""A model's whole train step as XLA compiled it, for its analyses of cost and memory. JAX alone."""

from __future__ import annotations

from typing import Any

import jax


def compile_train_step(model: Any, batch: tuple[Any, Any, Any]) -> jax.stages.Compiled:
    """The train step of a compiled Keras model.

    Args:
        model: A model on which `compile` was called; its optimizer is built here.
        batch: Inputs, labels and sample weights, as `fit` hands them to a step.

    Example:
    ```python
    step = compile_train_step(model, batch)
    step.cost_analysis()["flops"], step.memory_analysis().temp_size_in_bytes
    ```
    """
    model._symbolic_build(data_batch=batch)
    model.optimizer.build(model.trainable_variables)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in groups)
    return jax.jit(model.train_step, donate_argnums=0).lower(state, batch).compile()
