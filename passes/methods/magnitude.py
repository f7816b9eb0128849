"""Magnitude pruning, the baseline: keep the largest weights, whatever they cost.

S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
The budget is charged as for every other method, so that comparisons at equal energy are fair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.methods.base import MethodSpec
from passes.methods.problem import SERVES, Problem
from passes.methods.sparsify import Sparsifier, SparsifyConfig
from passes.projection.allocate import Allocation, allocate
from passes.projection.uniform import allocate_uniform


@dataclass(frozen=True)
class Magnitude(SparsifyConfig):
    """Configuration of magnitude pruning; the other fields are those of `SparsifyConfig`.

    Attributes:
        scope: `"global"` ranks all weights of the model together, units of a pattern by their root
            mean square; `"layer"` keeps the same share of every layer.
    """

    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("scope", self.scope in ("global", "layer"), "'global' or 'layer'")


class MagnitudePruning(Sparsifier):
    """Keeps the largest weights of the model, or of every layer, one by one or in a pattern."""

    name = "magnitude"

    def allocation(self, problem: Problem) -> Allocation:
        """The longest prefix by magnitude, or the largest common share, that fits."""
        if isinstance(self.config, Magnitude) and self.config.scope == "layer":
            nonzeros = [h.nonzeros for h in problem.histograms]
            return allocate_uniform(problem.ladders, nonzeros, problem.minimums, problem.capacities)
        means, histograms = problem.per_weight()
        parts = (means, problem.ladders, problem.capacities)
        return allocate(*parts, order="magnitude", histograms=histograms)


SPEC = MethodSpec(
    name="magnitude",
    config=Magnitude,
    method=MagnitudePruning,
    serves=SERVES,
    source="Han et al., NeurIPS 2015 (magnitude pruning)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"zeros"}),
)
