"""What every command does around its work: clear errors and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import typer

INTERRUPTED = 130


@contextlib.contextmanager
def session(continue_with: str | None = None) -> Iterator[None]:
    """Errors that a user can mend end the command with their message alone, and exit code 1.

    Args:
        continue_with: The command that goes on after Ctrl-C, which ends with exit code 130.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        yield
    except KeyboardInterrupt:
        hint = f" Continue with\n  {continue_with}" if continue_with else ""
        _say(f"\nStopped.{hint}")
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if os.environ.get("KERORA_TRACEBACK"):
            raise
        _say(f"error: {error}")
        raise typer.Exit(1) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
