"""`kerora export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerora.cli.model import check_adapter_place
from kerora.cli.session import session


def export(
    source: Annotated[str, typer.Argument(help="The base that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Option(help="An adapter that kerora or PEFT saved.")],
    gguf: Annotated[
        Path, typer.Option(help="The file to write, for llama.cpp; one that does not exist yet.")
    ],
) -> None:
    """Write an adapter as a GGUF file, which llama.cpp loads beside its base.

    Example: `kerora export model.gguf --adapter runs/first/adapter --gguf adapter.gguf`
    """
    with session():
        check_adapter_place(adapter)
        if gguf.expanduser().exists():
            raise FileExistsError(f"'{gguf}' exists. Name a file that does not exist yet.")
        from kerora.quiet import quiet

        with quiet():
            from kerora.interchange import load_adapter, save_gguf_adapter
            from kerora.models.loading import load_task

            model = load_task(source, preprocessor=None)
            load_adapter(model, adapter)
            save_gguf_adapter(model, gguf)
        print(gguf)
