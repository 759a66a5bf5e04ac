"""What is wrong with a row, and the error that says so."""

from dataclasses import dataclass


class DataError(ValueError):
    """The training data cannot be used as it is. The message says where and what to do."""


@dataclass(frozen=True)
class BadRow:
    """One row that cannot become a training example.

    Args:
        where: Where the row came from, such as `"train.jsonl:17"` or `"row 3 of the list"`.
        reason: A short name under which such rows are counted, such as `"not JSON"`.
        detail: What exactly was found.
    """

    where: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class RowProblem(Exception):  # noqa: N818 - always caught and turned into a `BadRow`
    """Raised while one row is read or understood; whoever knows the place adds it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def at(self, where: str) -> BadRow:
        return BadRow(where, self.reason, self.detail)


class LongRow(RowProblem):
    """A row that does not fit the sequence length."""
