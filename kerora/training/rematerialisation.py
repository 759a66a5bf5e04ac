"""Rematerialisation: computing activations again in the backward pass instead of keeping them.

It can be switched on after a model is loaded, and off again. With whole blocks, what is kept is the
input of each group of blocks; the backward pass runs a group a second time. A group of g blocks out
of L keeps L/g inputs and, while it is being run again, g blocks' activations: the sum is least at
g = sqrt(L / r), where one block's activations are r times its input, and then grows with the square
root of L (Chen et al., 2016, https://arxiv.org/abs/1604.06174). On the CPU, JAX saves this memory
only under XLA's memory-optimised scheduler: see `kerora/cpu_memory.py`.
"""

import contextvars
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, get_args

import keras

from kerora.models.attention_layers import ATTENTION_LAYERS
from kerora.models.families import decoder_blocks
from kerora.training.attention import in_step

Policy = Literal["none", "elementwise", "attention", "blocks"]
_running: ContextVar[bool] = ContextVar("kerora_running_checkpoint", default=False)


def rematerialise(backbone: Any, policy: Policy) -> None:
    """Chooses what the training steps of a backbone compute twice instead of keeping.

    Generation and anything else outside of a step is not affected. Compiled training functions
    keep the policy that they were traced with: call it before `compile`, or compile again.

    Args:
        backbone: a KerasHub backbone with decoder blocks.
        policy: `"none"` keeps everything; `"elementwise"`, on JAX alone and there the default,
            keeps matrix products and attention and computes the rest of each decoder block again;
            `"attention"` computes each attention layer again, its projections included;
            `"blocks"` computes whole decoder blocks again.

    Raises:
        ValueError: if the policy is unknown, the backend does not have it, or the backbone has no
            layers that it applies to.

    Example:

        rematerialise(model.backbone, "blocks")
        model.compile(...)
    """
    if policy not in get_args(Policy):
        raise ValueError(
            f"`policy` must be one of {', '.join(map(repr, get_args(Policy)))}. "
            f"Received: {policy!r}"
        )
    if policy == "elementwise" and keras.backend.backend() != "jax":
        raise ValueError(
            "policy 'elementwise' needs JAX, whose compiler is told what to keep. The backend is "
            f"{keras.backend.backend()!r}; use 'none', 'attention' or 'blocks'."
        )
    blocks = decoder_blocks(backbone)
    for layer in [*blocks, *_attention_layers(blocks)]:
        vars(layer).pop("call", None)
    if policy == "none":
        return
    layers = _attention_layers(blocks) if policy == "attention" else blocks
    groups = _groups(blocks) if policy == "blocks" else [[layer] for layer in layers]
    if not groups:
        raise ValueError(
            f"policy {policy!r} applies to no layer of {type(backbone).__name__}; "
            "use 'none', or 'blocks' on a backbone with decoder blocks."
        )
    for group in groups:
        _wrap(group, policy)


def rematerialise_by_default(backbone: Any) -> None:
    """Chooses `"elementwise"` where the backend has it and the backbone has blocks."""
    if keras.backend.backend() == "jax" and decoder_blocks(backbone):
        rematerialise(backbone, "elementwise")


def _attention_layers(blocks: Sequence[Any]) -> list[Any]:
    names = {layer.class_name for layer in ATTENTION_LAYERS}
    return [
        layer
        for block in blocks
        for layer in block._flatten_layers(include_self=False)
        if any(cls.__name__ in names for cls in type(layer).__mro__)
    ]


def _groups(blocks: Sequence[Any]) -> list[list[Any]]:
    """Consecutive blocks that are computed again together."""
    if not all(isinstance(getattr(block, "output", None), keras.KerasTensor) for block in blocks):
        # Blocks inside of another layer have no outputs of their own to compare; Gemma 4's give
        # their keys and values beside what the next one takes.
        return [[block] for block in blocks]
    if not blocks:
        return []
    width = blocks[0].output.shape[-1]
    # A kernel of `width` times n makes n activations out of `width`, or takes in as many.
    ratio = max(1.0, blocks[0].count_params() / width**2)
    size = max(1, round(math.sqrt(len(blocks) / ratio)))
    if not all(map(_follows, blocks, blocks[1:])):
        size = 1
    return [list(blocks[i : i + size]) for i in range(0, len(blocks), size)]


def _follows(block: Any, successor: Any) -> bool:
    """Whether the successor's first input is the block's output, and nothing in between."""
    return keras.tree.flatten(successor.input)[0] is block.output


def _wrap(group: list[Any], policy: Policy) -> None:
    leader, *followers = group
    leader.call = _leader_call(leader, followers, policy)
    for follower in followers:
        follower.call = _follower_call(follower)


def _leader_call(leader: Any, followers: list[Any], policy: Policy) -> Callable[..., Any]:
    stock = _own_call(leader)
    entry = _Entry(dtype=leader.dtype_policy, name=f"{leader.name}_again")

    @functools.wraps(stock)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = keras.tree.flatten((args, kwargs))
        if not _applies(leaves):
            return stock(*args, **kwargs)
        # All that a gradient may reach is an argument of `run`: TensorFlow gives none to the rest.
        places = [place for place, leaf in enumerate(leaves) if _is_floating(leaf)]

        def run(*tensors: Any) -> Any:
            filled = leaves.copy()
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            inputs = keras.tree.pack_sequence_as((args, kwargs), filled)
            x, others, named = _split_first(stock, *inputs)
            for layer in (stock, *followers):
                x = layer(x, *others, **named)
            return x

        tensors = [leaves[place] for place in places]
        layers = [leader, *followers]
        if keras.backend.backend() != "jax":
            return _run_twice(run, entry, _seeds(layers))(*tensors)
        from kerora.training.rematerialisation_jax import traced_once

        rest = [keras.KerasTensor if i in places else leaf for i, leaf in enumerate(leaves)]
        rest = keras.tree.pack_sequence_as((args, kwargs), rest)
        return traced_once(_marked(run), layers, rest, policy)(*tensors)

    return call


def _follower_call(follower: Any) -> Callable[..., Any]:
    stock = _own_call(follower)

    @functools.wraps(stock)
    def call(*args: Any, **kwargs: Any) -> Any:
        x, args, kwargs = _split_first(stock, args, kwargs)
        # Its group's leader has run it already.
        return x if _applies(x) else stock(x, *args, **kwargs)

    return call


def _own_call(layer: Any) -> Callable[..., Any]:
    """The call of the layer's class, as it is when it is called: a step replaces attention's."""

    @functools.wraps(layer.call)
    def call(*args: Any, **kwargs: Any) -> Any:
        return type(layer).call(layer, *args, **kwargs)

    return call


def _applies(x: Any) -> bool:
    symbolic = isinstance(keras.tree.flatten(x)[0], keras.KerasTensor)
    return in_step() and not _running.get() and not symbolic


def _is_floating(leaf: Any) -> bool:
    return keras.ops.is_tensor(leaf) and "float" in keras.backend.standardize_dtype(leaf.dtype)


def _split_first(call: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """A layer's first argument, which KerasHub passes by position or by name, and the others."""
    if args:
        return args[0], args[1:], kwargs
    first = next(iter(inspect.signature(call).parameters))
    return kwargs[first], (), {name: x for name, x in kwargs.items() if name != first}


def _seeds(layers: list[Any]) -> list[Any]:
    return [
        variable
        for layer in layers
        for variable in layer.non_trainable_variables
        if variable.name == "seed_generator_state"
    ]


def _marked(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, in which the layers that it calls do not ask for a second run of their own."""

    @functools.wraps(run)
    def marked(*tensors: Any) -> Any:
        token = _running.set(True)
        try:
            return run(*tensors)
        finally:
            _running.reset(token)

    return marked


class _Entry(keras.layers.Layer):
    """Hands `training` down to the layers that `run` calls, also when the step's call is over."""

    def call(self, tensors: Sequence[Any], run: Any, training: Any = None) -> Any:
        return run(tensors, training)


def _run_twice(
    run: Callable[..., Any], entry: keras.layers.Layer, seeds: list[Any]
) -> Callable[..., Any]:
    """For TensorFlow and PyTorch, which run the function again in the backward pass.

    By then the step's contexts, and Keras' own for the layers that are being called, are gone.
    """
    step = contextvars.copy_context()
    states = [keras.ops.copy(seed.value) for seed in seeds]
    of_step: dict[str, Any] = {}

    def marked(tensors: Sequence[Any], training: Any) -> Any:
        of_step["training"] = training
        _running.set(True)
        return run(*tensors)

    def function(*tensors: Any) -> Any:
        if not of_step:
            return step.copy().run(entry, tensors, run=marked)
        now = [keras.ops.copy(seed.value) for seed in seeds]
        for seed, state in zip(seeds, states, strict=True):
            seed.assign(state)
        y = step.copy().run(entry, tensors, run=marked, **of_step)
        for seed, state in zip(seeds, now, strict=True):
            seed.assign(state)
        return y

    return keras.remat(function)
