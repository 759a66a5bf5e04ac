"""`kerora train`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from kerora.cli.session import session


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; `kerora recipe` prints one.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the recipe, such as adapter.rank=4, and output=DIR, the run folder.",
        ),
    ] = None,
) -> None:
    """Train a model by a recipe. The same folder again continues the run.

    Example: `kerora train configs/quickstart.yaml epochs=2 output=runs/first`
    """
    output, overrides = _split(changes or [])
    with session():
        from kerora.recipe import load_recipe
        from kerora.run_folder import claim_folder, open_run_folder

        checked = load_recipe(recipe, overrides)
        folder = Path(output) if output else claim_folder(_new_folder(recipe))
    again = shlex.join(["kerora", "train", str(recipe), *overrides, f"output={folder}"])
    with session(continue_with=again):
        from rich.console import Console

        from kerora.quiet import quiet

        console = Console(highlight=False, soft_wrap=True)
        # What is wrong with the folder is told before the seconds that imports take.
        with open_run_folder(folder, checked, claimed=not output) as run_folder:
            with quiet():
                from kerora.run import carry_out
                from kerora.run_text import figures_table, places
            result = carry_out(checked, run_folder, console)
        console.print(figures_table({"before": result.before, "after": result.after}))
        for line in places(result.folder):
            console.print(line)


def _split(changes: list[str]) -> tuple[str | None, list[str]]:
    """The last `output=DIR`, and the changes to the recipe."""
    outputs = [change.removeprefix("output=") for change in changes if change.startswith("output=")]
    overrides = [change for change in changes if not change.startswith("output=")]
    return (outputs[-1] or None) if outputs else None, overrides


def _new_folder(recipe: Path) -> Path:
    return Path("runs") / f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
