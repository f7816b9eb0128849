"""Bring an archive below its limit: propose, write, measure the real bytes, correct."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.coding.tensor import tensor_bits
from passes.graph import ModelGraph
from passes.joint.quantizer import bake_codebooks
from passes.methods.joint.finished import round_rest, write_solution
from passes.methods.joint.solve import Solution
from passes.methods.joint.targets import Targets

# Of the limit; a budget that leaves no more unused is not tried again.
_UNUSED = 0.005
# Trials until something fits, and after that.
_MISSES, _TRIALS = 24, 5
# A trial is followed by none of less than this part of its budget.
_STEP = 8

Measure = Callable[[ModelGraph], int]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a limit came to.

    Attributes:
        budget: Bits for the weights, as the rate counts them.
        bytes: Of the archive.
        weights: Of them, bytes of the weights.
    """

    budget: int
    bytes: int
    weights: float = 0.0


@dataclass(slots=True)
class _Bracket:
    """Budgets between which the one lies that fills a limit.

    Attributes:
        maximum: Bytes that are allowed.
        low: The largest budget that fits.
        high: The smallest that does not; infinite before there is one.
        above: Bytes at `high`.
        hits: Trials since one fitted.
        misses: Trials that did not.
    """

    maximum: int
    low: Fitted = Fitted(0, 0)
    high: float = math.inf
    above: float = math.inf
    hits: int = 0
    misses: int = 0

    def add(self, found: Fitted) -> None:
        """Narrow it by a trial."""
        self.hits += bool(self.hits) or found.bytes <= self.maximum
        if found.bytes > self.maximum:
            self.misses += 1
            if found.budget < self.high:
                self.high, self.above = found.budget, found.bytes
        elif found.budget > self.low.budget:
            self.low = found

    def guess(self, last: Fitted) -> int:
        """What to try next, after the last trial."""
        wanted = self.maximum * (1 - _UNUSED / 2)
        if self.hits and self.high < math.inf:
            span = self.high - self.low.budget
            share = (wanted - self.low.bytes) / (self.above - self.low.bytes)
            return int(self.low.budget + min(max(share, 0.1), 0.9) * span)
        # What is no weight stays; the rest grows about as the bits that it is given.
        room = wanted - last.bytes + last.weights
        scaled = int(last.budget * room / max(last.weights, 1))
        if self.hits:
            return scaled
        # Where the smallest weights are rounded to zero, fewer of them change nothing.
        most = int(self.high * (1 - _UNUSED * 2 ** min(self.misses, 7)))
        return min(max(scaled, int(self.high) // _STEP), most)


@dataclass(frozen=True, slots=True)
class ArchiveFit:
    """Measures what an archive of a model takes.

    Attributes:
        graph: The model; only copied.
        targets: Its weights.
        measure: Bytes of the archive of a finished model.
        significand: Significant bits of what is no weight.
    """

    graph: ModelGraph
    targets: Targets
    measure: Measure
    significand: int

    def overhead(self) -> int:
        """Bytes of the archive that are no weight."""
        plain = self._plain()
        return max(0, self.measure(plain) - int(_coded_bytes(self.targets.weights(plain))))

    def bytes_of(self, solution: Solution) -> int:
        """Bytes of the archive of a solution."""
        plain = self._plain()
        write_solution(plain, self.targets, solution)
        return self.measure(plain)

    def weights_of(self, solution: Solution) -> float:
        """Of the bytes of a solution's archive, those of the weights."""
        return _coded_bytes(solution.values(self.targets.weights(self.graph)))

    def fit(
        self, propose: Callable[[int], Solution], budget: int, limit: ResolvedLimit
    ) -> tuple[Solution, Fitted]:
        """Find the budget of bits whose solution fills the limit.

        Args:
            propose: A solution within so many bits.
            budget: Where to begin.
            limit: That on the archive.

        Returns:
            The largest solution that fits, and what was found of it.

        Raises:
            InfeasibleBudget: Even the smallest one does not fit.
        """
        best: tuple[Solution, Fitted] | None = None
        smallest: tuple[Solution, Fitted] | None = None
        bracket = _Bracket(int(limit.maximum))
        while bracket.misses < _MISSES and bracket.hits < _TRIALS:
            solution = propose(budget)
            found = Fitted(budget, self.bytes_of(solution), self.weights_of(solution))
            fits = found.bytes <= limit.maximum
            if fits and best is not None and found.bytes == best[1].bytes:
                break  # another limit, or the widest codes: more bits change nothing
            if fits and (best is None or found.bytes > best[1].bytes):
                best = solution, found
            if not fits and smallest is None:  # is there anything to look for?
                smallest = self._smallest(propose, limit)
            bracket.add(found)
            if fits and limit.maximum - found.bytes <= _UNUSED * limit.maximum:
                break
            budget = bracket.guess(found)
            if budget in (bracket.low.budget, bracket.high):
                break
        if best is not None:
            return best
        return smallest or self._smallest(propose, limit)

    def _smallest(
        self, propose: Callable[[int], Solution], limit: ResolvedLimit
    ) -> tuple[Solution, Fitted]:
        """What is left when every weight that may go is gone; it must fit."""
        solution = propose(0)
        tightest = self.bytes_of(solution)
        if tightest <= limit.maximum:
            return solution, Fitted(0, tightest)
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,} bytes, but {tightest:,} remain when every "
            "weight that may go is gone",
            limit="archive",
            asked=limit.maximum,
            tightest=tightest,
            remedy="Raise the limit: the graph, biases and norms of the model take so much.",
        )

    def _plain(self) -> ModelGraph:
        plain = copy.deepcopy(self.graph)
        bake_codebooks(plain)
        plain.codebooks.clear()
        round_rest(plain, self.targets, self.significand)
        return plain


def _coded_bytes(values: Sequence[Tensor]) -> float:
    """What weights take in an archive."""
    return sum(tensor_bits(value.detach().cpu().numpy()) for value in values) / 8


def require_measure(measure: Measure | None) -> Measure:
    """Raise where archives cannot be written."""
    if measure is None:
        raise PreconditionError(
            "a limit on the archive needs a way to write one", where="method 'joint'"
        )
    return measure
