"""Bring an archive below its limit: propose, write, measure the real bytes, correct."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

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
# So many trials, and more while nothing has fitted yet.
_TRIALS, _MOST = 5, 24

Measure = Callable[[ModelGraph], int]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a limit came to.

    Attributes:
        budget: Bits for the weights, as the rate counts them.
        bytes: Of the archive.
    """

    budget: int
    bytes: int


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
        weights = sum(tensor_bits(w.detach().cpu().numpy()) for w in self.targets.weights(plain))
        return max(0, self.measure(plain) - int(weights / 8))

    def bytes_of(self, solution: Solution) -> int:
        """Bytes of the archive of a solution."""
        plain = self._plain()
        write_solution(plain, self.targets, solution)
        return self.measure(plain)

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
        best: tuple[int, Solution, int] | None = None
        overhead, low, high = self.overhead(), 0, math.inf
        for trial in range(_MOST):
            if best is not None and trial >= _TRIALS:
                break
            solution = propose(budget)
            found = self.bytes_of(solution)
            if found <= limit.maximum:
                low = max(low, budget)
                if best is not None and found == best[0]:
                    break  # another limit, or the widest codes: more bits change nothing
                if best is None or found > best[0]:
                    best = found, solution, budget
                if limit.maximum - found <= _UNUSED * limit.maximum:
                    break
            else:
                high = min(high, budget)
            # What is no weight stays; the rest grows about as the bits that it is given.
            rate = (limit.maximum - overhead) / max(found - overhead, 1)
            guess = int(budget * rate * (1 - _UNUSED / 2))
            budget = guess if low < guess < high else int((low + min(high, 2 * low)) // 2)
            if budget in (low, high):
                break
        if best is not None:
            return best[1], Fitted(best[2], best[0])
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


def require_measure(measure: Measure | None) -> Measure:
    """Raise where archives cannot be written."""
    if measure is None:
        raise PreconditionError(
            "a limit on the archive needs a way to write one", where="method 'joint'"
        )
    return measure
