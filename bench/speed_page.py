"""How a measurement of speed leaves: its errors as exit codes, its report as a page or JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import typer

from energy_model.errors import ArgumentError, CompressionError


class SpeedReport(Protocol):
    """What was measured; `str` is for the terminal."""

    def markdown(self, command: str) -> str:
        """A page with the command that made it."""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Tell an error and leave: 2 for bad usage, 1 for a measurement that failed."""
    try:
        yield
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error


def publish(report: SpeedReport, module: str, out: Path | None, *, as_json: bool) -> None:
    """Print a report, and write its page.

    Args:
        report: What was measured.
        module: What was run: `python -m MODULE`.
        out: The page, or `None`.
        as_json: Print JSON.
    """
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        out.write_text(report.markdown(command), encoding="utf-8")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
