"""Energy-constrained compression by weighted sparse projection.

H. Yang, Y. Zhu, J. Liu, "Energy-Constrained Compression for Deep Neural Networks via Weighted
Sparse Projection and Layer Input Masking", ICLR 2019.

    min ||W - Z||^2   subject to   E(W) <= B

A weight's price is the energy that its presence costs: in a convolution it is multiplied at every
output position, in a linear layer once. Ranked by squared value per price, cheap weights of linear
layers survive that plain magnitude pruning would remove at the same energy.

Changed against the authors' code: the item at the edge is not lost, sums are integers, what the
prefix leaves is filled, every layer keeps a minimum, an infeasible budget is an error. O(n).
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.methods.base import MethodSpec
from passes.methods.problem import SERVES, Problem
from passes.methods.sparsify import Sparsifier, SparsifyConfig
from passes.projection.allocate import Allocation, allocate
from passes.projection.fill import fill


@dataclass(frozen=True)
class EnergyProjection(SparsifyConfig):
    """Configuration of the energy projection; the other fields are those of `SparsifyConfig`.

    Attributes:
        fill: After the longest prefix, also take later weights that still fit.
    """

    fill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("fill", isinstance(self.fill, bool), "True or False")


class WeightedProjection(Sparsifier):
    """Projects all layers at once onto the budget."""

    name = "energy"

    def allocation(self, problem: Problem) -> Allocation:
        """Greedy by value per price, with its certificate."""
        parts = (problem.weights, problem.ladders)
        chosen = allocate(*parts, problem.capacities, histograms=problem.histograms)
        if isinstance(self.config, EnergyProjection) and self.config.fill:
            chosen = fill(chosen, *parts, problem.histograms)
        return chosen


SPEC = MethodSpec(
    name="energy",
    config=EnergyProjection,
    method=WeightedProjection,
    serves=SERVES,
    source="Yang, Zhu, Liu, ICLR 2019 (weighted sparse projection)",
    keeps=frozenset({"shapes"}),
)
