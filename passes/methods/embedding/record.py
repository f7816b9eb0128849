"""What a search has found: every student, the best ones, and how well they were predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from energy_model.errors import StorageError
from passes.embedding.encoder import Encoder
from passes.methods.embedding.ledger import Ledger, Row
from passes.methods.embedding.ranking import best_rows, pareto_front


@dataclass(frozen=True, slots=True)
class Finalist:
    """A student that was trained fully after the search.

    Attributes:
        digest: Digest of its genotype.
        genotype: The genotype as a JSON object.
        costs: Its costs by key.
        searched: Its accuracy in the search.
        accuracy: After full training, on the validation data; without training that of the weights
            that the search left.
        reward: With that accuracy.
        history: Of its full training, as in `Compressed.history`.
    """

    digest: str
    genotype: Mapping[str, Any]
    costs: Mapping[str, int | float]
    searched: float
    accuracy: float
    reward: float
    history: tuple[Mapping[str, Any], ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """All of a search.

    Attributes:
        accuracy: Of the teacher on the validation data.
        costs: Of the teacher, by key.
        metric: The costs that the reward counts.
        fidelity: Epochs after which the rungs end.
        rows: Every student on every rung that it was trained for, in the order of the proposals.
        finalists: Those that were trained fully, the best first: that one is the result.
        steps: What the history says of each step, among it how well surrogates predicted.
        encoders: What the surrogate has learned, to start another search with: files of their own
            beside a saved record, see `save_encoders`.
        proposing: Seconds that went into choosing students, without those of a search that was
            killed.
    """

    accuracy: float
    costs: Mapping[str, int | float]
    metric: tuple[str, ...]
    fidelity: tuple[int, ...]
    rows: tuple[Row, ...]
    finalists: tuple[Finalist, ...]
    steps: tuple[Mapping[str, Any], ...] = ()
    encoders: tuple[Encoder, ...] = field(default=(), compare=False, repr=False)
    proposing: float = field(default=0.0, compare=False)

    @classmethod
    def of_ledger(cls, path: Path) -> SearchRecord:
        """A search that runs or was killed, as far as it has come; it has no finalists.

        Args:
            path: Its record, see `Ledger`.

        Raises:
            StorageError: The file cannot be read.
        """
        about, rows = Ledger.peek(path)
        return cls.from_dict(
            {**about, "rows": [_plain(row) for row in rows], "finalists": [], "steps": []}
        )

    @property
    def best(self) -> Finalist:
        """The result."""
        return self.finalists[0]

    @property
    def epochs(self) -> int:
        """Epochs that all students were trained in the search, together."""
        before = (0, *self.fidelity)
        return sum(
            self.fidelity[row.rung] - before[row.rung]
            for row in self.rows
            if row.status != "pending"
        )

    @property
    def seconds(self) -> float:
        """Time that was spent on students in the search."""
        return sum(row.seconds or 0.0 for row in self.rows)

    def top(self, count: int) -> list[Row]:
        """The best of the search; see `ranking.best_rows`."""
        return best_rows(self.rows, count)

    def front(self, cost: str | None = None) -> list[Row]:
        """Accuracy against a cost: students that no other beats in both; see `pareto_front`.

        Args:
            cost: Its key; the first that the reward counts by default.
        """
        return pareto_front(self.rows, self.metric[0] if cost is None else cost)

    def about(self) -> dict[str, Any]:
        """What was known before the first student, as a JSON object."""
        return {
            "accuracy": self.accuracy,
            "costs": dict(self.costs),
            "metric": list(self.metric),
            "fidelity": list(self.fidelity),
        }

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return self.about() | {
            "rows": [_plain(row) for row in self.rows],
            "finalists": [
                _plain(one) | {"history": [dict(row) for row in one.history]}
                for one in self.finalists
            ],
            "steps": [dict(step) for step in self.steps],
            "proposing": self.proposing,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchRecord:
        """Read what `to_dict` wrote.

        Raises:
            StorageError: Something is missing or malformed.
        """
        try:
            return cls(
                float(data["accuracy"]),
                dict(data["costs"]),
                tuple(data["metric"]),
                tuple(data["fidelity"]),
                tuple(Row(**row) for row in data["rows"]),
                tuple(_finalist(one) for one in data["finalists"]),
                tuple(data["steps"]),
                proposing=float(data.get("proposing", 0.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the record of the search is malformed: {type(error).__name__}: {error}",
                where="search",
                remedy="Restore the folder from a copy.",
            ) from error


def ranked(finalists: Sequence[Finalist]) -> tuple[Finalist, ...]:
    """The best by reward first; equal ones in the order in which they were."""
    return tuple(sorted(finalists, key=lambda one: -one.reward))


def _finalist(data: Mapping[str, Any]) -> Finalist:
    return Finalist(**{**data, "history": tuple(data.get("history", ()))})


def _plain(value: Row | Finalist) -> dict[str, Any]:
    found = {item.name: getattr(value, item.name) for item in fields(value)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in found.items()}
