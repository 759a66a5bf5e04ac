"""`kerora merge`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kerora.cli.model import check_adapter_place
from kerora.cli.session import session


def merge(
    base: Annotated[
        Path, typer.Argument(help="A Hugging Face folder, a KerasHub preset folder, or tiny_gemma.")
    ],
    adapter: Annotated[
        Path, typer.Option(help="A folder that kerora or PEFT saved, or KerasHub's .lora.h5.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write: a folder that does not exist yet.")],
    force: Annotated[
        bool, typer.Option("--force", help="Merge into a base that it was not trained on.")
    ] = False,
) -> None:
    """Add an adapter to its base and write the result, tensor by tensor, as the base is stored.

    Example: `kerora merge smollm2-135m-instruct --adapter runs/first/adapter --out merged`
    """
    with session():
        check_adapter_place(adapter)
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        from kerora.quiet import quiet

        with quiet():
            from kerora.interchange.merge import merge_folder

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeLeft(),
        )
        with (
            open(os.dup(2), "w", encoding=sys.stderr.encoding) as screen,
            Progress(
                *columns,
                console=Console(file=screen),  # past `quiet`, which passes whole lines on
                transient=True,
                disable=not screen.isatty(),
            ) as shown,
            quiet(),
        ):
            task = shown.add_task("reading the adapter", total=None)

            def progress(name: str, done: int, total: int) -> None:
                shown.update(task, description=name, completed=done, total=total)

            changed = merge_folder(base, adapter, out, force=force, progress=progress)
        files = [file for file in out.expanduser().rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{changed} tensors changed; {size / 1e9:.2f} GB in {out}")
