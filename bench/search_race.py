"""Searches over architectures side by side: `python -m bench.search_race RUNS... [--out PAGE]`.

How soon each search has what random search finds with all of its students, by evaluations and by
epochs; what it found in the end, and what choosing took. Reads runs of a recipe with the method
`embedding` in several forms, one of them `surrogate: random`.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import read_results
from bench.speed_page import exit_codes
from energy_model.errors import ArgumentError
from passes.methods.embedding.record import SearchRecord
from passes.storage.atomic import write_file

CHANCE = "random"
_HEAD = (
    "| search | seed | best f | students to random's best | students to more | epochs to more "
    "| of all epochs | result: f | parameters | MACs | test, % | choosing, of training |\n| --- |"
    + " ---: |"
    * 11
)
_NOTE = (
    "f = C (2 - C) A, with C the share of the cost that is saved and A the accuracy on the "
    "held-out images relative to the network's own. Best f: of the search, on the last rung. "
    "Random's best: what random search of the same seed and budget has found with all of its "
    "students; a dash: never. All searches begin with the same batch, so that it may hold that "
    "best: then only what is more tells them apart. Result: the best finalist, fully trained, and "
    "its accuracy on the test data. Choosing: seconds of proposing as a share of the seconds of "
    "training."
)


@dataclass(frozen=True, slots=True)
class Point:
    """A search after one more student.

    Attributes:
        students: Evaluated so far.
        epochs: That all of them were trained.
        best: The best reward on the last rung; 0 before any is there.
    """

    students: int
    epochs: int
    best: float


@dataclass(frozen=True, slots=True)
class Raced:
    """A finished search.

    Attributes:
        label: Of the method.
        budget: What was asked.
        seed: Of the run.
        surrogate: What chose the students.
        record: Of the search.
        test: Accuracy of the result on the test data.
    """

    label: str
    budget: str
    seed: int
    surrogate: str
    record: SearchRecord
    test: float

    def climb(self) -> list[Point]:
        """The search, student by student in the order of the proposals, each with all its epochs.

        A student that was stopped early or failed costs its epochs and reaches nothing.
        """
        rungs = (0, *self.record.fidelity)
        last = len(rungs) - 2
        found: list[Point] = []
        epochs, best = 0, 0.0
        rows = sorted(self.record.rows, key=lambda row: row.place)
        for number, (_, own) in enumerate(groupby(rows, key=lambda row: (row.step, row.slot))):
            for row in own:
                epochs += rungs[row.rung + 1] - rungs[row.rung]
                if row.rung == last and row.status == "done":
                    best = max(best, row.reward or 0.0)
            found.append(Point(number + 1, epochs, best))
        return found

    def reached(self, reward: float) -> Point | None:
        """The first point with at least this reward, if there is one."""
        return next((point for point in self.climb() if point.best >= reward), None)

    def passed(self, reward: float) -> Point | None:
        """The first point with more than this reward, if there is one."""
        return next((point for point in self.climb() if point.best > reward), None)


def read_searches(folders: Iterable[Path]) -> list[Raced]:
    """Every finished search below the folders, by budget, seed and label.

    Raises:
        StorageError: A run is damaged.
        ArgumentError: There is no search.
    """
    found = [_raced(result) for result in read_results(folders).values() if "search" in result]
    if not found:
        raise ArgumentError(
            "there is no finished search",
            where=", ".join(map(str, folders)),
            remedy="Name folders of runs with the method 'embedding'.",
        )
    return sorted(found, key=lambda one: (one.budget, one.seed, one.label))


def to_markdown(searches: Sequence[Raced], command: str) -> str:
    """A table for each budget, the mean of each method, and the command."""
    parts = ["# Searches over architectures", f"    {command}"]
    for budget in dict.fromkeys(one.budget for one in searches):
        own = [one for one in searches if one.budget == budget]
        parts += [f"## {budget}", "\n".join([_HEAD, *(_line(one, own) for one in own)])]
        parts.append(_means(own))
    return "\n\n".join([*parts, _NOTE]) + "\n"


def _raced(result: Mapping[str, Any]) -> Raced:
    cell = result["cell"]
    return Raced(
        cell["label"],
        cell["budget"],
        cell["seed"],
        cell["method"]["surrogate"],
        SearchRecord.from_dict(result["search"]),
        result["metrics"]["test"]["after"],
    )


def _goal(own: Sequence[Raced], seed: int) -> float | None:
    """What chance has found with all of its students."""
    rewards = [one.climb()[-1].best for one in own if one.seed == seed and one.surrogate == CHANCE]
    return max(rewards, default=None)


def _line(one: Raced, own: Sequence[Raced]) -> str:
    end, best = one.climb()[-1], one.record.best
    goal = _goal(own, one.seed)
    point = None if goal is None else one.reached(goal)
    more = None if goal is None else one.passed(goal)
    seconds = one.record.seconds
    cells = [
        one.label,
        str(one.seed),
        f"{end.best:.4f}",
        "-" if point is None else f"{point.students} of {end.students}",
        "-" if more is None else f"{more.students} of {end.students}",
        "-" if more is None else str(more.epochs),
        str(end.epochs),
        f"{best.reward:.4f}",
        f"{best.costs['params']:,}",
        f"{best.costs['macs']:,}",
        f"{100 * one.test:.2f}",
        f"{one.record.proposing / seconds:.1%}" if seconds else "",
    ]
    return f"| {' | '.join(cells)} |"


def _means(own: Sequence[Raced]) -> str:
    told = []
    for label in dict.fromkeys(one.label for one in own):
        runs = [one for one in own if one.label == label]
        goals = [(one, goal) for one in runs if (goal := _goal(own, one.seed)) is not None]
        points = [one.passed(goal) for one, goal in goals if one.surrogate != CHANCE]
        there = [point.students for point in points if point is not None]
        mean = statistics.fmean(one.climb()[-1].best for one in runs)
        text = f"{label}: best f {mean:.4f} over {len(runs)} seeds"
        if points:
            text += f", more than random's best at {len(there)} of {len(points)}"
        if there:
            text += f" after {statistics.fmean(there):.1f} students"
        told.append(text)
    return f"In the mean: {'; '.join(told)}."


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="A Markdown page to write.")] = None,
) -> None:
    """Compare searches over architectures.

    Exit codes: 0 done; 1 a run cannot be read; 2 bad usage.
    """
    command = shlex.join(["python", "-m", "bench.search_race", *sys.argv[1:]])
    with exit_codes():
        page = to_markdown(read_searches(runs), command)
        if out is not None:
            write_file(out, page.encode())
    typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
