"""Progress of long work: a spinner on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

from energy_model.errors import ArgumentError

Mode = Literal["auto", "bar", "log", "none"]


class Progress:
    """Names the stage that is running, on the standard error stream.

    Args:
        mode: `"bar"`, `"log"`, `"none"`; `"auto"` is a bar on a terminal and nothing otherwise.
    """

    def __init__(self, mode: Mode | bool = "auto") -> None:
        if isinstance(mode, bool):
            mode = "auto" if mode else "none"
        if mode not in get_args(Mode):
            raise ArgumentError(
                f"unknown mode {mode!r}", where="progress", remedy=f"One of {get_args(Mode)}."
            )
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "none"
        self.mode = mode

    def row(self, row: Mapping[str, Any]) -> None:
        """Show one row of a history: an epoch."""
        if self.mode == "none":
            return
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(cells), file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs."""
        if self.mode == "bar":
            from rich.console import Console

            with Console(stderr=True).status(name):
                yield
            return
        if self.mode == "log":
            print(name, file=sys.stderr, flush=True)
        yield
