"""What to write in place of a keyword argument that a function does not have."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def hints(of_others: Mapping[str, str]) -> Callable[[Function], Function]:
    """A decorator: an unknown keyword's error names the one that was meant, and all there are.

    Args:
        of_others: The names that other libraries have for the function's own.

    Returns:
        The decorator. The function raises `TypeError` as Python does.

    Example:
    ```python
    @hints({"r": "rank"})
    def enable_lora(rank): ...


    enable_lora(r=8)  # TypeError: enable_lora has no argument `r`. Did you mean `rank`? …
    ```
    """

    def decorate(function: Function) -> Function:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def hinted(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    meant = of_others.get(name)
                    meant = meant if meant in known else (near[0] if near else None)
                    raise TypeError(
                        f"{function.__qualname__.removesuffix('.__init__')} has no argument "
                        f"`{name}`.{f' Did you mean `{meant}`?' if meant else ''} It takes "
                        f"{', '.join(known)}."
                    )
            return function(*args, **kwargs)

        return hinted  # type: ignore[return-value]

    return decorate
