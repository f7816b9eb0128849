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
from passes.methods.config import MethodConfig
from passes.methods.sparsify import ONE_SHOT_DENSITY, SERVES, Problem, Sparsifier
from passes.projection.allocate import Allocation, allocate
from passes.projection.fill import fill


@dataclass(frozen=True)
class EnergyProjection(MethodConfig):
    """Configuration of the energy projection.

    Attributes:
        min_per_layer: Least number of weights that every layer keeps.
        min_density: Least share of weights that every layer keeps; `None` is 0.02 in one shot and
            0 when the model is trained.
        fill: After the longest prefix, also take later weights that still fit.
    """

    min_per_layer: int = 1
    min_density: float | None = None
    fill: bool = True

    def __post_init__(self) -> None:
        require_minimums(self)
        self._require("fill", isinstance(self.fill, bool), "True or False")


def require_minimums(config: EnergyProjection | MethodConfig) -> None:
    """Validate the fields `min_per_layer` and `min_density` of a configuration."""
    least, density = getattr(config, "min_per_layer"), getattr(config, "min_density")  # noqa: B009
    whole = isinstance(least, int) and not isinstance(least, bool)
    config._require("min_per_layer", whole and least >= 0, "a whole number from 0")
    number = isinstance(density, int | float) and not isinstance(density, bool)
    allowed = density is None or (number and 0 <= density <= 1)
    config._require("min_density", allowed, "None, or a share from 0 to 1")


def minimums(config: MethodConfig, one_shot: bool) -> tuple[int, float]:
    """`min_per_layer` and the effective `min_density`."""
    least, density = getattr(config, "min_per_layer"), getattr(config, "min_density")  # noqa: B009
    if density is None:
        density = ONE_SHOT_DENSITY if one_shot else 0.0
    return least, density


class WeightedProjection(Sparsifier):
    """Projects all layers at once onto the budget."""

    name = "energy"

    def minimums(self, one_shot: bool) -> tuple[int, float]:
        """Least number and share that every layer keeps."""
        return minimums(self.config, one_shot)

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
