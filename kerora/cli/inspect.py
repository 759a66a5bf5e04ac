"""`kerora inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from kerora.cli.model import check_adapter_place
from kerora.cli.session import session


def inspect(
    folder: Annotated[Path, typer.Argument(help="An adapter that kerora or PEFT saved.")],
) -> None:
    """Tell what an adapter holds and on which base, without loading a model.

    Example: `kerora inspect runs/first/adapter`
    """
    with session():
        check_adapter_place(folder)
        from kerora.quiet import quiet

        with quiet():
            from kerora.interchange.contents import inspect_adapter

        contents = inspect_adapter(folder)
        config, notes = contents.config, contents.kerora
        targets = Counter(module.rpartition(".")[2] for module in contents.factors)
        lines = {
            "base": config.base or "not named",
            "trained on": notes["fingerprint"]["backbone"] if "fingerprint" in notes else "unknown",
            "rank": config.rank,
            "alpha": f"{config.alpha:g}{' (rank-stabilised)' if config.use_rslora else ''}",
            "dropout": f"{config.dropout:g}",
            "bias": config.bias,
            "targets": ", ".join(f"{name} (x{count})" for name, count in sorted(targets.items())),
            **({"stored whole": len(contents.whole)} if contents.whole else {}),
            "parameters": f"{contents.parameter_count:,}",
        }
        for name, value in lines.items():
            print(f"{name:<13}{value}")
