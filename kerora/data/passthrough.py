"""Whether data is text for kerora to tokenise, or tokens that Keras takes as they are."""

from collections.abc import Mapping
from typing import Any


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
