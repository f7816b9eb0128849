"""One step of a search: its candidates are trained up the ladder, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from passes.methods.embedding.jobs import Candidate, Evaluator, Job
from passes.methods.embedding.ladder import Ladder
from passes.methods.embedding.ledger import Ledger, Row
from passes.methods.embedding.ranking import needed_weights
from passes.methods.embedding.reward import Reward
from passes.methods.embedding.weights import CandidateWeights


@dataclass(frozen=True)
class Climb:
    """What the steps of a search are recorded in and evaluated with.

    Attributes:
        ledger: The record.
        weights: Where training of the candidates stopped.
        evaluator: Trains them.
        ladder: How long.
        reward: What they are worth.
        read: A genotype from its JSON object.
        keep: Of how many of the best the weights stay.
    """

    ledger: Ledger
    weights: CandidateWeights
    evaluator: Evaluator
    ladder: Ladder
    reward: Reward
    read: Callable[[Mapping[str, Any]], Candidate]
    keep: int

    def finish(self, step: int) -> list[Row]:
        """Evaluate what is pending of a step and let the best climb, until none is left.

        What the record has already is not done again: after a kill, the same call goes on.

        Args:
            step: Its proposals are recorded, pending on rung 0.

        Returns:
            The rows of the step, all finished.

        Raises:
            CompressionError: What would fail for every candidate; the record stays whole.
        """
        trusted = self.ladder.trusted(self.ledger.scores(before=step))
        for rung in range(self.ladder.last + 1):
            self._evaluate([row for row in self._rows(step, rung) if row.status == "pending"])
            if rung < self.ladder.last:
                self._promote(step, rung, trusted=trusted[rung])
            self.weights.keep(needed_weights(self.ledger.rows(), self.keep))
        return self.ledger.rows(step=step)

    def _rows(self, step: int, rung: int) -> list[Row]:
        return [row for row in self.ledger.rows(step=step) if row.rung == rung]

    def _evaluate(self, rows: list[Row]) -> None:
        if not rows:
            return
        jobs = [
            Job(
                self.read(row.genotype),
                row.rung,
                self.ladder.fidelity[row.rung],
                row.seed,
                self.weights.load(row.digest, row.rung - 1) if row.rung else None,
            )
            for row in rows
        ]
        for row, outcome in zip(rows, self.evaluator.evaluate(jobs), strict=True):
            # Weights first: a row that is done has its weights.
            if outcome.state is not None:
                self.weights.save(*row.key, outcome.state)
            self.ledger.finish(
                *row.key,
                accuracy=outcome.accuracy,
                reward=self.reward(row.costs, outcome.accuracy),
                seconds=outcome.seconds,
                failure=outcome.failure,
            )

    def _promote(self, step: int, rung: int, *, trusted: bool) -> None:
        rows = self._rows(step, rung)
        scores = [row.reward if row.status == "done" else None for row in rows]
        known = {row.digest for row in self._rows(step, rung + 1)}
        chosen = [rows[number] for number in self.ladder.promoted(scores, trusted=trusted)]
        self.ledger.add(_pending(row) for row in chosen if row.digest not in known)


def _pending(row: Row) -> Row:
    """The row of the same candidate on the next rung."""
    fresh: dict[str, Any] = dict.fromkeys(("accuracy", "reward", "seconds", "failure"))
    return replace(row, rung=row.rung + 1, status="pending", **fresh)
