"""Where solutions are chosen: in one shot, at the end of the ladder, and by real archives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph
from passes.joint.codebook import Codebook
from passes.joint.sizes import nominal_bits
from passes.methods.joint.alternation import Alternation
from passes.methods.joint.archive_fit import ArchiveFit, Measure, require_measure
from passes.methods.joint.finished import round_rest, write_solution
from passes.methods.joint.setting import Setting
from passes.methods.joint.solve import Solution, polish, solution_of, solve

# A budget of two limits is lowered until the second one holds: at most so often, by so much more.
_TRIALS, _BELOW = 12, 0.98


@dataclass(frozen=True, slots=True)
class Finish:
    """Chooses masks, bits and codebooks of a model under a setting.

    Attributes:
        graph: The model.
        setting: What is asked.
        measure: Bytes of an archive; `None` where none can be written.
    """

    graph: ModelGraph
    setting: Setting
    measure: Measure | None

    @property
    def fit(self) -> ArchiveFit:
        """What measures archives of the model."""
        measure = require_measure(self.measure)
        return ArchiveFit(self.graph, self.setting.targets, measure, self.setting.significand)

    def once(self) -> tuple[Solution, int]:
        """What one shot writes, and the bytes of its archive where these are limited; pure."""
        limit, budget = self.setting.archive, self.setting.budget
        if limit is None:
            return self._solved(budget), 0
        solution, fitted = self.fit.fit(self._solved, budget, limit)
        return solution, fitted.bytes

    def _solved(self, budget: int) -> Solution:
        """The best solution within a budget that keeps nominal bits as well."""
        setting, rate = self.setting, self.setting.rate()
        parts = (self.graph, setting.targets, setting.config, rate)
        weights, most = setting.targets.weights(self.graph), setting.nominal
        if most is not None:  # no more than all weights take: from there it is lowered
            whole = rate.size([torch.ones_like(w) for w in weights], self._widest)
            budget = min(budget, whole)
        solution = solve(*parts, budget, setting.significand)
        for _ in range(_TRIALS if most is not None else 0):
            nominal = nominal_bits(solution.values(weights), list(solution.bits))
            if most is None or nominal <= most:
                break
            budget = int(budget * max(most, 0) / nominal * _BELOW)
            solution = solve(*parts, budget, setting.significand)
        return solution

    @property
    def _widest(self) -> list[int]:
        return [max(target.widths) for target in self.setting.targets.rows]

    def settle(self, training: Alternation) -> None:
        """Choose the masks and bits that stay, from where training is; an archive's by bytes."""
        config, targets, limit = self.setting.config, training.targets, self.setting.archive
        weights = targets.weights(self.graph)
        layers = [t.bounds for t in targets.rows]
        round_rest(self.graph, targets, training.significand)

        def propose(budget: int) -> Solution:
            masks, bits = [w != 0 for w in weights], list(training.bits)
            if config.mode == "both" and training.choosing:
                masks, bits = polish(weights, bits, budget, training.rate, layers)
            elif config.mode != "quantize":
                masks = training.rate.project(weights, bits, budget, layers)
            elif training.choosing or training.rate.size(weights, bits) > budget:
                bits = training.rate.choose(weights, weights, bits, budget, layers)
            return solution_of(weights, masks, bits, targets, config, training.significand)

        given = config.mode == "quantize" and all(len(t.widths) == 1 for t in targets.rows)
        if limit is None or given:
            solution = propose(training.budget)
        else:
            solution, fitted = self.fit.fit(propose, training.budget, limit)
            training.budget = fitted.budget
        for weight, mask in zip(weights, solution.masks, strict=True):
            weight.masked_fill_(~mask, 0.0)
        training.bits = list(solution.bits)

    def recalibrated(self, training: Alternation, masks: list[Tensor]) -> int:
        """The budget of bits after a look at the real archive of the weights that masks keep.

        Units that have died take their biases with them, and codes and positions may be cheaper
        than was thought. Only under a limit on the archive.
        """
        limit, targets = self.setting.archive, training.targets
        assert limit is not None
        weights = targets.weights(self.graph)
        parts = (training.bits, targets, self.setting.config, training.significand)
        solution = solution_of(weights, masks, *parts)
        found, coded = self.fit.bytes_of(solution), self.fit.weights_of(solution)
        kept = [w.detach().masked_fill(~m, 0) for w, m in zip(weights, masks, strict=True)]
        size = training.rate.size(kept, training.bits)
        # What is no weight stays as it is now; the rest grows about as the bits that it is given.
        room = int(limit.maximum) - found + coded
        budget = int(size * room / coded) if coded else size + int(8 * room)
        whole = training.rate.size([torch.ones_like(w) for w in weights], self._widest)
        return min(max(0, budget), whole)

    def trim(self, codebooks: Mapping[str, Codebook], limit: ResolvedLimit) -> None:
        """Write a finished model; the cheapest weights go until its archive fits, none if it does.

        Args:
            codebooks: By site; the weights are plain already.
            limit: That on the archive.
        """
        targets = self.setting.targets
        weights = [w.clone() for w in targets.weights(self.graph)]
        layers = [t.bounds for t in targets.rows]
        books = tuple(codebooks.get(t.name) for t in targets.rows)
        pairs = zip(targets.rows, books, strict=True)
        bits = [t.widths[0] if book is None else book.bits for t, book in pairs]
        whole = Solution(tuple(w != 0 for w in weights), books, tuple(bits))
        if self.fit.bytes_of(whole) > limit.maximum:
            rate = self.setting.rate()

            def propose(budget: int) -> Solution:
                masks = rate.project(weights, bits, budget, layers)
                return Solution(tuple(masks), books, tuple(bits))

            whole, _ = self.fit.fit(propose, rate.size(weights, bits), limit)
        write_solution(self.graph, targets, whole)
