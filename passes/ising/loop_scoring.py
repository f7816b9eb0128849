"""Candidates one by one: the reference of the other back ends."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from passes.inputs import Call
from passes.ising.scoring import Scoring


class LoopScoring(Scoring):
    """A gated forward for each state, at the cost of the whole network."""

    name: ClassVar[str] = "loop"

    def _outputs(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        found = []
        for row in self.gates.rows(population):
            with self.gates.acting(row), self._normalising(norms):
                found.append(self._run(self.gates.module, call))
        return found
