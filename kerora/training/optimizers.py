"""Optimizers beside Keras' own: any optax transformation, on JAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerora.user_warning import warn_user


@keras.saving.register_keras_serializable(package="kerora")
class Optax(keras.optimizers.Optimizer):
    """A Keras optimizer that updates as an `optax.GradientTransformation` does.

    Its state is held as Keras variables, so that checkpoints, `save_weights` and `fit` treat it
    like the state of Keras' own optimizers. The transformation sees the trainable variables as a
    dictionary from path to value: masks and labels can tell them by name.

    Args:
        transformation: Anything with optax's `init` and `update`, such as `optax.adamw(1e-4)`, an
            `optax.chain(...)`, or `optax.MultiSteps(...)`. As everywhere in optax it holds its own
            learning rate, clipping and weight decay.
        learning_rate: The rate within the transformation, for logs alone: a number, or a schedule
            from the number of steps to the rate. Default: not known.
        gradient_accumulation_steps: Keras' accumulation: the transformation sees the mean gradient
            of so many steps.
        name: Name of the optimizer.

    Raises:
        ValueError: On another backend than JAX, or for something that is no transformation.

    Example:
    ```python
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-4, 100, 1000)
    transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    model.compile(optimizer=kerora.optimizers.Optax(transformation, learning_rate=schedule))
    ```
    """

    def __init__(
        self,
        transformation: Any,
        learning_rate: float | Callable[[Any], Any] | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "optax",
    ) -> None:
        if keras.backend.backend() != "jax":
            raise ValueError(
                "An optax transformation needs the JAX backend. Set KERAS_BACKEND=jax, or use one "
                f"of `keras.optimizers`. Received backend: {keras.backend.backend()}"
            )
        if isinstance(transformation, _Transformation):
            transformation = transformation.held
        if not hasattr(transformation, "init") or not hasattr(transformation, "update"):
            raise ValueError(
                "`transformation` must be an `optax.GradientTransformation`, such as "
                f"`optax.adamw(1e-4)`. Received: {transformation!r}"
            )
        super().__init__(
            learning_rate=self._rate_of_iteration,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self._transformation = transformation
        self._given_rate = learning_rate

    def _rate_of_iteration(self) -> Any:
        if callable(self._given_rate):
            return self._given_rate(self.iterations)
        return math.nan if self._given_rate is None else self._given_rate

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the state's variables for these trainable variables."""
        import jax

        if self.built:
            return
        super().build(variables)
        names = [variable.path for variable in variables]
        unique = len(set(names)) == len(names)
        self._names = {
            self._var_key(variable): variable.path if unique else f"{variable.path}#{place}"
            for place, variable in enumerate(variables)
        }
        state = self._transformation.init(self._by_name(variables, variables))
        leaves, self._structure = jax.tree.flatten(state)
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
        self._key_types = [_key_type(leaf) for leaf in leaves]
        self._state = []
        for path, leaf in zip(paths, leaves, strict=True):
            values = _without_key(leaf)
            name = jax.tree_util.keystr(path).replace("/", "_")
            self._state.append(
                self.add_variable(
                    values.shape,
                    # A copy: a transformation may keep the parameters themselves, and JAX donates
                    # every buffer of a step once.
                    initializer=lambda shape, dtype, values=values: ops.copy(values),
                    dtype=str(values.dtype),
                    name=name or "state",
                )
            )

    def _by_name(self, variables: Any, values: Any) -> dict[str, Any]:
        return {
            self._names[self._var_key(variable)]: ops.convert_to_tensor(value)
            for variable, value in zip(variables, values, strict=True)
        }

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        import jax
        import optax

        everything = self._trainable_variables
        gradients = {
            name: ops.zeros_like(value)
            for name, value in self._by_name(everything, everything).items()
        }
        gradients.update(self._by_name(trainable_variables, grads))
        parameters = self._by_name(everything, everything)
        leaves = [
            _with_key(variable.value, key_type)
            for variable, key_type in zip(self._state, self._key_types, strict=True)
        ]
        state = jax.tree.unflatten(self._structure, leaves)
        updates, state = self._update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        for variable in everything:
            variable.assign(parameters[self._names[self._var_key(variable)]])
        for variable, leaf in zip(self._state, jax.tree.leaves(state), strict=True):
            variable.assign(_without_key(leaf))

    def _update(self, gradients: Any, state: Any, parameters: Any) -> Any:
        try:
            return self._transformation.update(gradients, state, parameters)
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise ValueError(
                "This transformation needs more than gradients and parameters, and Keras' `fit` "
                f"gives an optimizer nothing else: {error}"
            ) from error

    def get_config(self) -> dict[str, Any]:
        """The arguments; the transformation itself lives in this process alone."""
        return {
            "transformation": _Transformation(self._transformation),
            "learning_rate": None if callable(self._given_rate) else self._given_rate,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Optax:
        """An optimizer of the same arguments.

        Raises:
            ValueError: If the config comes from a file.
        """
        if not isinstance(config["transformation"], _Transformation):
            raise ValueError(
                "This model was compiled with an optax transformation, which its file does not "
                "hold. Load it with `compile=False` and compile it with "
                "`kerora.optimizers.Optax(...)`."
            )
        return cls(**config)


class _Transformation:
    """Carries a transformation through `get_config`; a file cannot hold it."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def get_config(self) -> dict[str, Any]:
        warn_user(
            "An optax transformation is Python functions, which a file cannot hold. To go on "
            "training from this file, load it with `compile=False` and compile the model with the "
            "same transformation."
        )
        return {}


def _key_type(leaf: Any) -> Any:
    """The implementation of a typed random key, which no Keras variable can hold; else None."""
    import jax

    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        return jax.random.key_impl(leaf)
    return None


def _without_key(leaf: Any) -> Any:
    import jax

    return jax.random.key_data(leaf) if _key_type(leaf) is not None else jax.numpy.asarray(leaf)


def _with_key(values: Any, key_type: Any) -> Any:
    import jax

    return values if key_type is None else jax.random.wrap_key_data(values, impl=key_type)
