"""What became of the rows of the data, in numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataReport:
    """Counts over the rows read so far, each counted once however many epochs there are.

    Args:
        total_rows: Rows in the data.
        rows: Rows read so far; all of them where the data is one window.
        examples: Rows that became examples.
        skipped: Rows that did not, by reason.
        skipped_examples: The first few of them, as text with place and reason.
        truncated: Examples whose end was cut off.
        tokens: Real tokens, padding not counted.
        supervised_tokens: Tokens that the loss covers.
        packed_rows: Rows of `sequence_length` that hold them.
        fill: Share of those rows' positions that hold a real token.
        steps_per_epoch: Batches in an epoch.
        complete: Whether all rows were read; `steps_per_epoch` is an estimate until then.
    """

    total_rows: int
    rows: int
    examples: int
    skipped: Mapping[str, int]
    skipped_examples: tuple[str, ...]
    truncated: int
    tokens: int
    supervised_tokens: int
    packed_rows: int
    fill: float
    steps_per_epoch: int
    complete: bool

    def __str__(self) -> str:
        about = "" if self.complete else "about "
        lines = [
            f"{self.rows:,} of {self.total_rows:,} rows read: {self.examples:,} examples, "
            f"{self.tokens:,} tokens ({self.supervised_tokens:,} learned), in "
            f"{self.packed_rows:,} rows filled to {self.fill:.1%}; "
            f"{about}{self.steps_per_epoch:,} steps per epoch"
        ]
        return "\n".join([*lines, *self.lost()])

    def lost(self) -> list[str]:
        """What was cut or left out, a sentence each; empty where everything was used."""
        lines = [f"{count:,} rows skipped: {reason}" for reason, count in self.skipped.items()]
        if any("too long" in reason for reason in self.skipped):
            lines.append("a larger sequence_length would keep those that are too long")
        if self.truncated:
            lines.insert(0, f"{self.truncated:,} examples were cut to the sequence length")
        return lines


@dataclass(frozen=True)
class WindowCounts:
    """The counts of one window of rows; see `DataReport`."""

    rows: int = 0
    examples: int = 0
    truncated: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    packed_rows: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_examples: tuple[str, ...] = ()


def add_up(counts: Iterable[WindowCounts]) -> WindowCounts:
    """The sum of the counts of several windows."""
    counts = list(counts)
    skipped: dict[str, int] = {}
    for window in counts:
        for reason, number in window.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + number
    shown = [text for window in counts for text in window.skipped_examples]
    return WindowCounts(
        rows=sum(window.rows for window in counts),
        examples=sum(window.examples for window in counts),
        truncated=sum(window.truncated for window in counts),
        tokens=sum(window.tokens for window in counts),
        supervised_tokens=sum(window.supervised_tokens for window in counts),
        packed_rows=sum(window.packed_rows for window in counts),
        skipped=skipped,
        skipped_examples=tuple(shown[:10]),
    )
