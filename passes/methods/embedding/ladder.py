"""How long candidates are trained: successive halving over rungs of ever more epochs.

A candidate is trained for a few epochs; the best of a step go on to the next rung, from where they
stopped, and so to the last one (K. Jamieson and A. Talwalkar, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization", AISTATS 2016). With rungs of 1, 3 and 10 epochs, of
which a third goes on, nine candidates cost 9*1 + 3*2 + 1*7 = 22 epochs instead of 90.

Whether few epochs tell who is best after many is measured, not believed: the first candidates are
all trained to the end, and a rung decides only if its scores rank them as the last rung does
(Spearman's rank correlation). All functions are pure: a resumed search decides the same again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from energy_model.errors import ArgumentError
from passes.rank_correlation import rank_correlation

Scores = Mapping[int, float]
"""Of one candidate: score by rung, higher is better, of the rungs that it finished."""

# Two pairs always correlate perfectly, one way or the other.
_FEWEST = 3


@dataclass(frozen=True)
class Ladder:
    """The rungs, and who climbs.

    Attributes:
        fidelity: Epochs after which each rung ends, ascending.
        eta: One in so many goes on, rounded up.
        probes: Candidates that are trained to the end before a rung may decide; 0 trusts every
            rung from the start.
        least: Rank correlation with the last rung below which a rung does not decide.
    """

    fidelity: tuple[int, ...] = (1, 3, 10)
    eta: int = 3
    probes: int = 16
    least: float = 0.5

    def __post_init__(self) -> None:
        falls = any(a >= b for a, b in pairwise(self.fidelity))
        if not self.fidelity or self.fidelity[0] < 0 or falls:
            raise ArgumentError(
                f"{self.fidelity} is no ladder",
                where="fidelity",
                remedy="Give epochs from 0 in ascending order, such as (1, 3, 10).",
            )
        if self.eta < 2:
            raise ArgumentError(f"one in {self.eta} cannot go on", where="eta", remedy="Take 3.")
        if self.probes < 0:
            raise ArgumentError(f"{self.probes} probes", where="probes", remedy="Take 16.")

    @property
    def last(self) -> int:
        """Number of the last rung."""
        return len(self.fidelity) - 1

    def epochs(self, rung: int) -> int:
        """Epochs that a rung adds to those of the rung before it."""
        return self.fidelity[rung] - (self.fidelity[rung - 1] if rung else 0)

    def counts(self, candidates: int, trusted: Sequence[bool] | None = None) -> tuple[int, ...]:
        """How many candidates are trained on each rung, if none fails.

        Args:
            candidates: How many begin.
            trusted: Whether each rung below the last decides; by default all do.
        """
        trust = [True] * self.last if trusted is None else trusted
        found = [candidates]
        for rung in range(self.last):
            found.append(-(-found[-1] // self.eta) if trust[rung] else found[-1])
        return tuple(found)

    def total_epochs(self, candidates: int, trusted: Sequence[bool] | None = None) -> int:
        """Epochs that a step takes over all its candidates, if none fails."""
        counts = self.counts(candidates, trusted)
        return sum(count * self.epochs(rung) for rung, count in enumerate(counts))

    def promoted(self, scores: Sequence[float | None], *, trusted: bool = True) -> tuple[int, ...]:
        """Who goes on from a rung.

        Args:
            scores: Of the candidates of a rung in their order, higher is better; `None` failed.
            trusted: Whether the rung decides; if not, all go on that did not fail.

        Returns:
            Positions, ascending. One in `eta` of all goes on, rounded up, of those that did not
            fail; equal scores go by order.

        Raises:
            ArgumentError: A score is not a number.
        """
        for score in scores:
            if score is not None and math.isnan(score):
                raise ArgumentError(
                    "a score is not a number", where="scores", remedy="Record it as failed: None."
                )
        able = [(-score, number) for number, score in enumerate(scores) if score is not None]
        if trusted:
            able = sorted(able)[: -(-len(scores) // self.eta)]
        return tuple(sorted(number for _, number in able))

    def correlations(self, history: Sequence[Scores]) -> tuple[float | None, ...]:
        """How well each rung below the last ranks the probes as the last one does.

        Args:
            history: Scores of all candidates of earlier steps, in their order.

        Returns:
            Spearman's rank correlation over the first `probes` candidates that finished the last
            rung; `None` until there are as many, or where all scores of a rung are equal.
        """
        count = max(self.probes, _FEWEST)
        rungs = range(self.last + 1)
        probes = [scores for scores in history if all(r in scores for r in rungs)][:count]
        if len(probes) < count:
            return (None,) * self.last
        final = [scores[self.last] for scores in probes]
        return tuple(
            rank_correlation([scores[rung] for scores in probes], final)
            for rung in range(self.last)
        )

    def trusted(self, history: Sequence[Scores]) -> tuple[bool, ...]:
        """Whether each rung below the last decides who goes on.

        Once there are enough probes the answer never changes: they are the first ones.

        Args:
            history: As for `correlations`.
        """
        if not self.probes:
            return (True,) * self.last
        found = self.correlations(history)
        return tuple(value is not None and value >= self.least for value in found)
