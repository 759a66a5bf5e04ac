"""The command `kerora`. Its commands import what they need when they run: `--help` is quick."""

from __future__ import annotations

import typer

from kerora.cli.evaluate import evaluate
from kerora.cli.export import export
from kerora.cli.generate import generate
from kerora.cli.inspect import inspect
from kerora.cli.merge import merge
from kerora.cli.recipe import recipe
from kerora.cli.train import train

app = typer.Typer(
    help="Fine-tune KerasHub language models with low-rank adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, recipe, generate, evaluate, inspect, merge, export):
    app.command()(command)
