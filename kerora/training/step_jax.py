"""On JAX a step that fails gives the model its values back.

Keras takes the values out of a model's variables at the start of an epoch, hands them from step to
step, and puts them back when it ends. What goes wrong before a first step is done (too little
memory, a row that cannot be read, Ctrl-C while XLA compiles) leaves it a model without values. So
does Ctrl-C while JAX computes: Python raises it after the step, which took the old values over, and
before anybody holds the new ones. It is then kept back until they are in the variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kerora.training.errors import OutOfMemory
from kerora.training.interrupts import ctrl_c_held
from kerora.training.step_memory_jax import StepMemory

_NO_MEMORY = "RESOURCE_EXHAUSTED"
_LOST = " The model's values went with the step: load it again."
Step = Callable[[Any, Any], Any]


def guarded(model: Any, step: Step) -> Step:
    """A compiled step of `fit`, `evaluate` or `predict` that loses no values when it is cut short.

    Args:
        model: Whose step it is.
        step: Takes the state, a list of arrays for each kind of variables (trainable ones, others,
            in `fit` the optimizer's, but in `predict` metrics'), and an iterator over batches.

    Returns:
        The same step. It raises `OutOfMemory` in place of XLA's error.
    """

    memory = StepMemory()

    @functools.wraps(step)
    def guarded_step(state: Any, iterator: Any) -> Any:
        with ctrl_c_held(lambda: _taken_over(state)) as pressed:
            try:
                result = step(state, iterator)
                memory.after_step()
            except BaseException as error:
                lost = "" if _give_back(model, state) else _LOST
                if _NO_MEMORY in str(error):
                    first = str(error).splitlines()[0]
                    raise OutOfMemory(
                        f"A step needs more memory than there is ({first}). Lower "
                        f"`sequence_length` or `batch_size`, or see `kerora.rematerialise`.{lost}"
                    ) from error
                if lost:
                    error.add_note(lost.strip())
                raise
        if pressed():
            _give_back(model, result[1])
            raise KeyboardInterrupt
        return result

    return guarded_step


def _give_back(model: Any, state: Any) -> bool:
    """Puts the values of a state back into the variables; False where the step took them over."""
    if _taken_over(state):
        return False
    arrays = [array for part in state for array in part]
    of_optimizer = model.optimizer.variables if len(state) == 4 else []
    of_metrics = model.metrics_variables if len(state) > 2 else []
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    variables += [*of_optimizer, *of_metrics]
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    model._jax_state_synced = True
    return True


def _taken_over(state: Any) -> bool:
    """Whether a step has begun to compute in the memory of this state."""
    return any(array.is_deleted() for part in state for array in part)
