"""The rows that every contestant trains on, and the text that each makes of them."""

from __future__ import annotations

import json
from pathlib import Path

PROMPT = "Instruction:\n{instruction}\n\nResponse:\n"


def read_rows(path: str, count: int) -> list[dict[str, str]]:
    """The first `count` instruction/response rows without a context."""
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not row.get("context"):
                rows.append({"prompt": prompt(row), "response": row["response"]})
            if len(rows) == count:
                return rows
    raise SystemExit(f"{path} has {len(rows)} rows without a context; {count} are needed.")


def prompt(row: dict[str, str]) -> str:
    """What a model is given of a row."""
    return PROMPT.format(instruction=row["instruction"])
