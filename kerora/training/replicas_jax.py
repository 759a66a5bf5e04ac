"""A training step on the CPU as replicas that each take some rows of the batch. JAX alone.

XLA runs large products on all cores, but products of small matrices (attention's), and whatever
lies between products, on one. With a JAX device for each of a few cores, the rows of a batch are
shared out among them and everything runs on all: on two cores a step of SmolLM2 takes 0.93 of its
time and 0.8 of its memory. The frozen base lies in memory once: every device is given the same
bytes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kerora.cpu_devices import cores, devices_wait
from kerora.training.replicas import replicated

_AXIS = "replicas"
_WHOLE, _ROWS = PartitionSpec(), PartitionSpec(_AXIS)
# What trains is updated on every device: too dear where it is much.
_LARGEST_TRAINABLE_SHARE = 0.1


def with_replicas(model: Any, step: Any) -> Any:
    """A step of Keras' `fit` whose batches are shared out where that can be done.

    Args:
        model: Whose step it is.
        step: What Keras made: takes the state and an iterator over batches.

    Returns:
        The step itself where JAX has one device for the CPU, an accelerator or a distribution, the
        step is not compiled, its loss needs the logits, or much of the model trains.
    """
    devices = jax.local_devices()
    fits = (
        len(devices) > 1
        and devices[0].platform == "cpu"
        and devices_wait()
        and keras.distribution.distribution() is None
        and model.jit_compile
        and not model.run_eagerly
        and model._compiled.objective is not None
        and _size(model.trainable_variables) <= _LARGEST_TRAINABLE_SHARE * _size(model.variables)
    )
    return model._make_function(ReplicatedStep(model, devices)) if fits else step


def on_first_device(step: Any) -> Any:
    """A step of Keras' `evaluate` that is compiled once, also after steps that were shared out.

    Those leave values that are bound to the first device, beside metrics that are bound to none
    until a step has returned them: two kinds of arguments, for each of which JAX would compile.

    Args:
        step: What Keras made: takes the state and an iterator over batches.

    Returns:
        The step itself where JAX has one device, no CPU, or a distribution.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or devices[0].platform != "cpu" or keras.distribution.distribution():
        return step

    @functools.wraps(step)
    def bound(state: Any, iterator: Any) -> Any:
        return step(jax.device_put(state, devices[0]), iterator)

    return bound


class ReplicatedStep:
    """Keras' train step, its batch shared out among the devices of the CPU.

    Takes and returns a state of arrays on the first device, as Keras' own.
    """

    def __init__(self, model: Any, devices: list[jax.Device]) -> None:
        self._model, self._devices = model, devices
        self._whole = jax.jit(model.train_step, donate_argnums=0)
        self._steps: dict[int, tuple[Mesh, Any]] = {}
        self._known: dict[int, tuple[jax.Array, jax.Array]] = {}

    def __call__(self, state: Any, data: Any) -> Any:
        rows = jax.tree.leaves(data)[0].shape[0]
        count = max(n for n in range(1, len(self._devices) + 1) if rows % n == 0)
        if count == 1:
            self._known.clear()  # what else holds the state's memory keeps it from being given up
            return self._whole(state, data)
        if count not in self._steps:
            mesh = Mesh(np.array(self._devices[:count]), (_AXIS,))
            # Where each core has a replica, none shares its products out again.
            options = {"xla_cpu_multi_thread_eigen": count < cores()}
            step = functools.partial(_train_step, self._model, mesh)
            self._steps[count] = mesh, jax.jit(step, compiler_options=options)
        mesh, step = self._steps[count]
        given = jax.tree.map(functools.partial(self._replicate, mesh), state)
        rest = state[1]
        self._known = {id(old): (old, new) for old, new in zip(rest, given[1], strict=True)}
        result = step(given, jax.device_put(data, NamedSharding(mesh, _ROWS)))
        logs, trainable, changed, *others = jax.tree.map(self._on_first_device, result)
        rest = [changed.get(i, old) for i, old in enumerate(rest)]
        return logs, (trainable, rest, *others)

    def _replicate(self, mesh: Mesh, array: jax.Array) -> jax.Array:
        sharding = NamedSharding(mesh, _WHOLE)
        known = self._known.get(id(array))
        if known is not None and known[1].sharding == sharding:
            return known[1]
        first, *others = mesh.devices.flat
        own = array if array.devices() == {first} else jax.device_put(array, first)
        host = np.asarray(own)  # a view of its memory
        copies = [own, *(jax.device_put(host, device, may_alias=True) for device in others)]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    def _on_first_device(self, array: jax.Array) -> jax.Array:
        view = array.addressable_data(0)
        self._known[id(view)] = view, array
        return view


def _train_step(model: Any, mesh: Mesh, state: Any, data: Any) -> Any:
    """As `train_step` of Keras' trainer for JAX, the gradients made by replicas.

    Of the variables that do not train it returns those that changed, by their place: the others
    would be copied.
    """
    trainable, rest, of_optimizer, of_metrics = state
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)

    def replica(trainable: Any, rest: Any, of_optimizer: Any, of_metrics: Any, *batch: Any) -> Any:
        drawing = _seeds_apart(model, rest)
        with model._step(), replicated(_total):
            (_, aux), gradients = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)(
                *(trainable, drawing, of_metrics, *batch),
                training=True,
                optimizer_variables=of_optimizer,
            )
        loss, outputs, drawn, of_metrics = aux
        changed = {
            i: _of_first(new)
            for i, (new, old) in enumerate(zip(drawn, drawing, strict=True))
            if new is not old
        }
        return (_total(gradients), _total(loss), changed, of_metrics), outputs

    (gradients, loss, changed, of_metrics), outputs = jax.shard_map(
        replica,
        mesh=mesh,
        in_specs=(*[_WHOLE] * 4, *[_ROWS] * 3),
        out_specs=(_WHOLE, _ROWS),
        check_vma=False,
    )(trainable, rest, of_optimizer, of_metrics, x, y, weights)
    trainable, of_optimizer = model.optimizer.stateless_apply(of_optimizer, gradients, trainable)
    with model._step():
        logs, of_metrics = model._update_metrics_variables(of_metrics, loss, x, y, outputs, weights)
    return logs, trainable, changed, of_optimizer, of_metrics


def _size(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _total(values: Any) -> Any:
    return jax.lax.psum(values, _AXIS)


def _seeds_apart(model: Any, rest: Any) -> list[Any]:
    """The variables that do not train, the seeds among them other ones on each replica but one.

    A seed of Keras is a pair, the second number of which counts what was drawn.
    """
    number = jax.lax.axis_index(_AXIS).astype(jnp.uint32)
    apart = number * jnp.array([0x9E3779B9, 0], jnp.uint32)
    return [
        value + apart if variable.name == "seed_generator_state" else value
        for variable, value in zip(model.non_trainable_variables, rest, strict=True)
    ]


def _of_first(value: Any) -> Any:
    return _total(jnp.where(jax.lax.axis_index(_AXIS) == 0, value, jnp.zeros_like(value)))
