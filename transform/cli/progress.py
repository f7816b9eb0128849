"""How the command line shows progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transform.progress import Mode

Steps = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


def progress_mode() -> Mode:
    """A bar if the standard error stream is a terminal, else lines."""
    return "bar" if sys.stderr.isatty() else "log"


@contextmanager
def counted_steps(mode: Mode) -> Iterator[Steps | None]:
    """A function that shows how far counted work has come, on the standard error stream."""
    if mode == "bar":
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what
            )
    else:
        yield _Lines() if mode == "log" else None


class _Lines:
    """One line per kind of step: models that take turns in a round are one kind."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != self.last:
            print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)
        self.last = what
