"""The error that adapters raise for what a user can mend."""

from collections.abc import Iterable


class AdapterError(ValueError):
    """An adapter that cannot be added, found, loaded or merged as asked."""


def no_adapter(name: str, held: Iterable[str]) -> AdapterError:
    """The error that a model holds no adapter of a name, only those given."""
    there = list(held)
    holds = f"holds {there}" if there else "holds none; `model.backbone.enable_lora(rank)` adds one"
    return AdapterError(f"No adapter named {name!r}: this model {holds}.")
