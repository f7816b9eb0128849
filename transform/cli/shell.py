"""The commands' common behaviour: exit codes, typed errors without a traceback, help texts."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from energy_model.errors import CompressionError, InfeasibleBudget, UnsupportedBudget

FAILED = 1
INFEASIBLE = 3
UNSUPPORTED = 4
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done; 1 the request cannot be carried out (the message says why); 2 bad usage; "
    "3 the budget is below what the method can reach; 4 no method serves a limit of the budget; "
    "130 interrupted."
)


def exit_code(error: CompressionError) -> int:
    """The exit code of an error."""
    if isinstance(error, InfeasibleBudget):
        return INFEASIBLE
    return UNSUPPORTED if isinstance(error, UnsupportedBudget) else FAILED


class Commands(TyperGroup):
    """A group of commands whose typed errors end the process without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report a typed error on stderr and exit with its code."""
        try:
            return super().invoke(ctx)
        except CompressionError as error:
            notes = getattr(error, "__notes__", [])
            print("\n".join([f"error: {error}", *notes]), file=sys.stderr)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error


class Command(TyperCommand):
    """A command whose help is its docstring, each paragraph wrapped to the terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        paragraphs = (kwargs.get("help") or "").split("\n\n")
        kwargs["help"] = "\n\n".join(" ".join(text.split()) for text in paragraphs)
        super().__init__(*args, **kwargs)
