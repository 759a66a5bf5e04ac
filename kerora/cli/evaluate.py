"""`kerora evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kerora.cli.model import check_adapter_place
from kerora.cli.session import session


def evaluate(
    source: Annotated[str, typer.Argument(help="The model: as `model.source` of a recipe.")],
    data: Annotated[str, typer.Argument(help="Held-out rows: as `data.train` of a recipe.")],
    adapter: Annotated[
        Path | None, typer.Option(help="A folder that kerora or PEFT saved.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Layout of the rows: as `data.template` of the recipe.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 4,
    exact_match: Annotated[
        int, typer.Option(min=0, help="Prompts answered greedily; 0 for none.")
    ] = 100,
    max_length: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    on_bad_row: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="A row that cannot be used: stop, or skip it and count."),
    ] = "stop",
) -> None:
    """Measure loss, perplexity, token accuracy and exact match of the response.

    Example: `kerora evaluate tiny_gemma tiny_gemma/heldout.jsonl --adapter runs/first/adapter`
    """
    with session():
        check_adapter_place(adapter)
        from rich.console import Console

        from kerora.quiet import quiet
        from kerora.recipe import EvaluationRecipe, check_data_file

        check_data_file(data)  # before the seconds that imports take
        with quiet():
            from kerora.cli.model import load
            from kerora.data import open_source
            from kerora.run_measure import Probe
            from kerora.run_parts import RunData, data_paths
            from kerora.run_text import figures_table
            from kerora.text_training import warn_of_chat_template
            from kerora.training.fit_data import DataOptions, text_batches

        paths = data_paths(data)
        open_source(paths)  # a damaged file is told before a model is loaded
        options = DataOptions(
            template=template, sequence_length=sequence_length, on_bad_row=on_bad_row
        )
        with quiet():
            model = load(source, adapter)
            batches = text_batches(model, paths, options, batch_size=batch_size, shuffle=False)
            rows = batches.report()
            warn_of_chat_template(model, batches)
        print(rows)
        asked = EvaluationRecipe(exact_match=exact_match, max_new_tokens=max_length)
        probe = Probe(model, RunData(batches, batches), asked)
        name = source if adapter is None else "with adapter"
        Console(highlight=False).print(figures_table({name: probe.measure()}))
