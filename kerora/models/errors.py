"""The error that loading a model raises for what a user can mend."""


class ModelSourceError(ValueError):
    """A source that names no model, or one that cannot be loaded faithfully."""


def inexpressible(family: str, field: str, value: object, expected: object) -> ModelSourceError:
    """The error for a field of a configuration that KerasHub's layers cannot compute."""
    return ModelSourceError(
        f"KerasHub's backbone for '{family}' has no way to express this `{field}`. Expected: "
        f"{expected}. Received: {value!r}. Loaded regardless, the model would give other answers."
    )
