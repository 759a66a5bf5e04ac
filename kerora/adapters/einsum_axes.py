"""Reading einsum equations that may hold an ellipsis."""

from __future__ import annotations

import string


def letters_for_ellipsis(used: str, rank_of_x: int, equation: str) -> str:
    """The letters that stand for `...` in an equation whose first operand has `rank_of_x` axes.

    Args:
        used: Letters that are taken.
        rank_of_x: Number of axes of the first operand.
        equation: The equation.
    """
    unused = [letter for letter in string.ascii_letters if letter not in used]
    return "".join(unused[: rank_of_x - len(equation.split(",")[0].replace("...", ""))])


def axes(equation: str, ellipsis: str) -> list[str]:
    """The letters of both operands and of the result, `...` being replaced by `ellipsis`."""
    return equation.replace("...", ellipsis).replace("->", ",").replace(" ", "").split(",")
