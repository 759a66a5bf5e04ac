"""Whether data is text for kerora to tokenise, or tokens that Keras takes as they are."""

from collections.abc import Mapping
from typing import Any

from kerora.data.errors import DataError
from kerora.data.mixtures import MixedSource
from kerora.data.sources import is_mixture


def is_token_data(data: Any) -> bool:
    """Whether `data` holds numbers (token ids), so that `fit` takes it untouched.

    True for arrays and tensors of numbers, dicts and tuples of them (such as `{"token_ids",
    "padding_mask"}`), nested lists of numbers, a `keras.utils.PyDataset`, a torch `DataLoader`, and
    a `tf.data` or Grain data set whose elements are numbers. False for everything that
    `open_source` reads. No data set is read further than its first element.

    Example:

    ```python
    is_token_data({"token_ids": ids, "padding_mask": mask})  # True
    is_token_data(["Hello."])  # False
    ```
    """
    if isinstance(data, MixedSource) or is_mixture(data):
        return False
    names = {f"{parent.__module__}.{parent.__name__}" for parent in type(data).__mro__}
    if any(name.startswith("keras.") and name.endswith(".PyDataset") for name in names):
        return True
    if "torch.utils.data.dataloader.DataLoader" in names:
        return True
    if hasattr(data, "element_spec"):  # tf.data
        return _holds_numbers(data.element_spec)
    if any(name.startswith("grain.") for name in names):
        return _holds_numbers(next(iter(data), None))
    return _holds_numbers(data)


def check_token_data(data: Any, *, tokenizer: bool) -> None:
    """Refuses numbers that Keras could make nothing of; see `is_token_data`.

    Args:
        data: What `is_token_data` is true of.
        tokenizer: Whether the model has a preprocessor, which wants text.

    Raises:
        DataError: The numbers are no arrays, or the model tokenises text itself.
    """
    rows = "a list of strings, of (prompt, response) pairs, of dicts, or of conversations"
    tokens = "a dict of arrays {'token_ids', 'padding_mask'} with labels as `y`"
    if isinstance(data, int | float | list | tuple) and not _has_arrays(data):
        raise DataError(
            f"Numbers are no rows of text. Expected text ({rows}), or tokens ({tokens}; set "
            f"`model.preprocessor = None` first). Received: {str(data)[:100]}"
        )
    if tokenizer:
        raise DataError(
            f"This model tokenises text itself. Expected text ({rows}). To train on tokens set "
            f"`model.preprocessor = None` and pass {tokens}. Received: {type(data).__name__}"
        )


def _has_arrays(value: Any) -> bool:
    if isinstance(value, list | tuple | Mapping):
        entries = value.values() if isinstance(value, Mapping) else value
        return any(_has_arrays(entry) for entry in entries)
    return hasattr(value, "dtype")


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    if isinstance(value, Mapping):
        if type(value).__name__.endswith("DatasetDict"):
            return False
        # A table of text may have columns of numbers, such as an id: every field has to be one.
        return bool(value) and all(_holds_numbers(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return bool(value) and _holds_numbers(value[0])
    if hasattr(value, "dtype"):  # NumPy, JAX, torch and TensorFlow tensors and specs
        kind = getattr(value.dtype, "kind", None)
        name = getattr(value.dtype, "name", str(value.dtype))
        return kind in "iufb" if kind else name != "string"
    return False
