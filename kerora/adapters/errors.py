"""The error that adapters raise for what a user can mend."""


class AdapterError(ValueError):
    """An adapter that cannot be added, found, loaded or merged as asked."""
