"""The error that loading a model raises for what a user can mend."""


class ModelSourceError(ValueError):
    """A source that names no model, or one that cannot be loaded faithfully."""
