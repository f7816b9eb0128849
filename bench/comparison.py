"""Methods compared at equal budgets: means over seeds, and paired tests against a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.paired import Against, Correct, against
from energy_model.errors import ArgumentError, StorageError
from passes.storage.atomic import read_json

RESULT, FORMAT = "result.json", "transform-result"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run.

    Attributes:
        label: The method.
        budget: What was asked.
        seed: The seed.
        accuracy: On the test data, a fraction.
        energy: Share of the original's relaxed energy that was reached.
        nonzeros: Share of the weights that are kept.
        steps: Optimizer steps.
        base: Test accuracy of the original, a fraction.
        correct: Which test samples it has right; `None` if the run does not say.
    """

    label: str
    budget: str
    seed: int
    accuracy: float
    energy: float
    nonzeros: float
    steps: int
    base: float | None
    correct: Correct | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A method at a budget, over all seeds.

    Attributes:
        label: The method.
        budget: What was asked.
        seeds: The seeds, ascending.
        mean: Mean test accuracy, a fraction.
        std: Sample standard deviation; `None` for one seed.
        energy: Mean share of the original's relaxed energy.
        nonzeros: Mean share of the weights that are kept.
        steps: Optimizer steps of each run.
        samples: Test samples of each run; `None` if they do not say.
        against: The comparison with the baseline.
    """

    label: str
    budget: str
    seeds: tuple[int, ...]
    mean: float
    std: float | None
    energy: float
    nonzeros: float
    steps: int
    samples: int | None = None
    against: Against = field(default_factory=Against)

    def to_dict(self) -> dict[str, Any]:
        """As one flat row, the comparison last; `seeds` is a list."""
        values = asdict(self) | {"seeds": list(self.seeds)}
        compared: dict[str, Any] = values.pop("against")
        return values | compared


@dataclass(frozen=True, slots=True)
class Table:
    """Methods x budgets.

    Attributes:
        experiment: What all runs share: recipe, model, weights, data, hardware.
        baseline: The method that the others are tested against.
        base: Test accuracy of the original; `None` if it differs between seeds or is not known.
        entries: One per method and budget, by falling energy, then by method.
        command: The command that made the table.
    """

    experiment: Mapping[str, Any]
    baseline: str
    base: float | None
    entries: tuple[Entry, ...]
    command: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods, the baseline last."""
        found = dict.fromkeys(entry.label for entry in self.entries)
        return tuple(sorted(found, key=lambda label: (label == self.baseline, label)))

    @property
    def samples(self) -> int | None:
        """Test samples of every run; `None` if the runs do not say, or differ."""
        found = {entry.samples for entry in self.entries}
        return found.pop() if len(found) == 1 else None

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets, the widest first."""
        return tuple(dict.fromkeys(entry.budget for entry in self.entries))

    def at(self, label: str, budget: str) -> Entry | None:
        """The entry of a method at a budget, if it was run."""
        own = (e for e in self.entries if (e.label, e.budget) == (label, budget))
        return next(own, None)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "command": self.command,
            "experiment": dict(self.experiment),
            "baseline": self.baseline,
            "base": self.base,
            "entries": [entry.to_dict() for entry in self.entries],
        }


def read_results(folders: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Every `result.json` below the folders, by the cell's folder.

    Raises:
        StorageError: A folder is missing or holds none, or a file is damaged.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        paths = sorted(Path(folder).rglob(RESULT))
        if not paths:
            raise StorageError(
                "there is no result.json",
                where=str(folder),
                remedy="Name a folder that `transform run` wrote.",
            )
        for path in paths:
            found[path.resolve().parent] = _read(path)
    return found


def _read(path: Path) -> dict[str, Any]:
    result = read_json(path)
    if result.get("format") != FORMAT or result.get("version") != 1:
        raise StorageError(
            "this is no result of a run", where=str(path), remedy="Run the recipe again."
        )
    return result


def tabulate(
    results: Iterable[Mapping[str, Any]], baseline: str | None = None, command: str = ""
) -> Table:
    """Means and tests of one experiment.

    Args:
        results: The values of what `read_results` returns; all of one recipe, model and data.
        baseline: Label of the method that the others are tested against; by default the first that
            begins with "magnitude", or else the first.
        command: The command, to be printed beside the table.

    Raises:
        ArgumentError: No results, of several experiments, two of one cell, without test accuracy,
            at unequal numbers of steps, or the baseline is not among them.
    """
    results = list(results)
    experiment = _common_experiment(results)
    outcomes = [_outcome(result) for result in results]
    _check_comparable(outcomes)
    labels = sorted({outcome.label for outcome in outcomes})
    magnitude = [label for label in labels if label.startswith("magnitude")]
    chosen = baseline or (magnitude or labels)[0]
    if chosen not in labels:
        raise ArgumentError(
            f"no run is labelled {chosen!r}", where="baseline", remedy=f"One of {labels}."
        )
    bases = {outcome.base for outcome in outcomes}
    entries = _entries(outcomes, chosen)
    return Table(experiment, chosen, bases.pop() if len(bases) == 1 else None, entries, command)


def _common_experiment(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not results:
        raise ArgumentError("no results", where="compare", remedy="Name a folder with some.")
    first = dict(results[0]["recipe"])
    for result in results:
        differing = [key for key in first if result["recipe"].get(key) != first[key]]
        if differing:
            raise ArgumentError(
                f"the runs differ in {', '.join(differing)}",
                where="compare",
                remedy="Compare methods on one model, one set of data and one hardware.",
            )
    return first


def _outcome(result: Mapping[str, Any]) -> Outcome:
    cell, test = result["cell"], result["metrics"]["test"]
    if test["after"] is None:
        raise ArgumentError(
            "a run has no test accuracy", where=cell["label"], remedy="Its data need a test part."
        )
    energy, nonzeros = result["energy"], result["nonzeros"]
    where = f"{cell['label']}, {cell['budget']}, seed {cell['seed']}"
    return Outcome(
        cell["label"],
        cell["budget"],
        cell["seed"],
        test["after"],
        energy["after"] / max(1, energy["before"]),
        nonzeros["after"] / max(1, nonzeros["before"]),
        result["steps"],
        test["before"],
        Correct.read(result.get("test_correct"), test["after"], where),
    )


def _check_comparable(outcomes: Sequence[Outcome]) -> None:
    seen: set[tuple[str, str, int]] = set()
    steps: dict[str, int] = {}
    for outcome in outcomes:
        key = (outcome.label, outcome.budget, outcome.seed)
        where = f"{outcome.label}, {outcome.budget}, seed {outcome.seed}"
        if key in seen:
            raise ArgumentError(
                "two results are of one cell", where=where, remedy="Remove one, or relabel it."
            )
        seen.add(key)
        if steps.setdefault(outcome.budget, outcome.steps) != outcome.steps:
            raise ArgumentError(
                f"{outcome.steps} training steps against {steps[outcome.budget]} of another run",
                where=where,
                remedy="Methods are compared at equal training steps.",
            )


def _entries(outcomes: Sequence[Outcome], baseline: str) -> tuple[Entry, ...]:
    groups: dict[tuple[str, str], dict[int, Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.label, outcome.budget), {})[outcome.seed] = outcome
    entries = [
        _entry(group, {} if label == baseline else groups.get((baseline, budget), {}))
        for (label, budget), group in groups.items()
    ]
    widest = {e.budget: max(x.energy for x in entries if x.budget == e.budget) for e in entries}
    return tuple(sorted(entries, key=lambda e: (-widest[e.budget], e.budget, e.label)))


def _entry(group: Mapping[int, Outcome], baseline: Mapping[int, Outcome]) -> Entry:
    seeds = tuple(sorted(group))
    runs = [group[seed] for seed in seeds]
    scores = [run.accuracy for run in runs]
    pairs = [(group[seed], baseline[seed]) for seed in seeds if seed in baseline]
    samples = {run.correct.samples if run.correct else None for run in runs}
    return Entry(
        runs[0].label,
        runs[0].budget,
        seeds,
        statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None,
        statistics.fmean(run.energy for run in runs),
        statistics.fmean(run.nonzeros for run in runs),
        runs[0].steps,
        samples.pop() if len(samples) == 1 else None,
        against(
            [own.accuracy for own, _ in pairs],
            [other.accuracy for _, other in pairs],
            [(own.correct, other.correct) for own, other in pairs],
        ),
    )
