"""Training by alternation: weights are trained, projected, and pulled to what can be written.

Weights take optimizer steps and proximal steps; every few steps they are projected onto a budget
that falls along a ladder, and duplicates and duals follow (`passes.joint.admm`). In the last part
masks and bits are fixed and training sees the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from passes.graph import ModelGraph
from passes.joint.admm import Split
from passes.joint.codebook import Codebook
from passes.joint.lloyd import refit, rounded_codebook
from passes.joint.quantizer import read_codebooks, set_codebooks, train_through
from passes.methods.joint.config import Joint
from passes.methods.joint.finished import round_rest
from passes.methods.joint.rates import Layer, Rate
from passes.methods.joint.solve import FULL, codebook_of
from passes.methods.joint.targets import Targets
from passes.rewrite.optimizer_state import part_of, zero_state

# Looks at real archives from the middle of the ladder until masks are fixed.
_CALIBRATIONS = 8


@dataclass
class Alternation:
    """The state of a training run.

    Attributes:
        graph: The prepared model.
        targets: Its weights.
        rate: How bits are counted.
        config: The method's configuration.
        significand: Significant bits of codebooks, biases and norms.
        budget: What the targets may take in the end, as the rate counts.
        total: Optimizer steps of the run.
        epoch: Optimizer steps of an epoch.
        settle: Removes weights and sets `bits` as they are to stay; called once, when masks are
            fixed. `None` projects.
        earlier: Bits that layers have from an earlier result.
        recalibrate: The budget anew, from what the weights under some masks really take; asked for
            at the start, and some times from the middle of the ladder until masks are fixed.
        first: Where the ladder begins, as the rate counts.
    """

    graph: ModelGraph
    targets: Targets
    rate: Rate
    config: Joint
    significand: int
    budget: int
    total: int
    epoch: int
    settle: Callable[[Alternation], None] | None = None
    earlier: Mapping[str, int] = field(default_factory=dict)
    recalibrate: Callable[[Alternation, list[Tensor]], int] | None = None
    recalibrated: int = 0
    bits: list[int] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    step: int = 0
    projected: int = -1
    doubled: int = -1
    rho: float = 0.0
    dual_residual: float = 0.0
    first: int = 0

    def start(self) -> None:
        """Duplicates are the weights, duals are zero, and every layer has its first bits."""
        self.rho, self.step, self.masks, self.recalibrated = self.config.rho, 0, [], 0
        self.bits = [t.first_bits(self.config.start_bits, self.earlier) for t in self.targets.rows]
        weights = self.targets.weights(self.graph)
        self.splits = [Split.of(w) for w in weights]
        if self.recalibrate is not None:
            masks = [weight != 0 for weight in weights]
            if self.config.mode != "quantize":
                masks = self.rate.project(weights, self.bits, self.budget, self.layers)
            self.budget = self.recalibrate(self, masks)
        if self.config.mode != "quantize":  # bits alone follow no ladder
            self.first = int(self.config.start * self.rate.size(weights, self.bits))
        train_through(self.graph, through=False)

    @property
    def layers(self) -> list[Layer]:
        """What the rate must know."""
        return [Layer(t.widths, t.least) for t in self.targets.rows]

    @property
    def settled(self) -> bool:
        """Whether masks and bits are fixed."""
        return bool(self.masks)

    @property
    def progress(self) -> float:
        """Share of the steps that are done; all where there are none."""
        return self.step / self.total if self.total else 1.0

    @property
    def choosing(self) -> bool:
        """Whether bits may still change."""
        return self.progress <= self.config.freeze_bits

    @property
    def allowed(self) -> int:
        """Bits that the targets may take now: the ladder falls geometrically."""
        first = max(self.first, self.budget, 1)
        done = 1.0 if self.config.ladder == 0 else min(1.0, self.progress / self.config.ladder)
        stages = self.config.stages
        if stages:
            done = min(1.0, (int(done * stages) + 1) / stages)
        if done == 1.0:
            return self.budget
        return max(self.budget, int(first * (max(self.budget, 1) / first) ** done))

    @property
    def at_target(self) -> bool:
        """Whether the budget is that of the finished model."""
        return self.allowed <= self.budget

    def add_pull(self) -> None:
        """Add the gradient of the distance to the duplicates, unless steps are proximal."""
        if self.config.prox or self.settled:
            return
        for target, split, weight in self._each():
            gradient = self.graph.parameter(target.site).grad
            if gradient is not None and target.quantized:
                part_of(gradient, target.site).add_(split.pull(weight, self.rho))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """The proximal step, and what is due; in the end, masks and codebooks."""
        self.step = step
        if self.progress > 1 - self.config.finetune:
            if not self.settled:
                self.fix(optimizer)
            self._keep_masks(optimizer)
            if step % max(1, self.epoch // self.config.refits) == 0:
                self._refit()
            return
        if self.config.prox and self.config.mode != "prune":
            rate = float(optimizer.param_groups[0]["lr"])
            for target, split, weight in self._each():
                if target.quantized:
                    split.proximal(weight, rate, self.rho)
        every, dual = self.config.project_every, self.config.dual_every
        if step == 1 or (every and step % every == 0):
            self.project(optimizer)
            self._recalibrate()
        if step == 1 or (dual and step % dual == 0):
            self.update_duals()

    def after_epoch(self, optimizer: torch.optim.Optimizer) -> None:
        """Project, update, and fit the codebooks that the model is evaluated with."""
        if self.settled:
            self._refit()
            self._round_rest()
            return
        if self.projected != self.step:
            self.project(optimizer)
            self._recalibrate()
        if self.doubled != self.step:
            self.update_duals()
        self.fit()
        self.rho *= self.config.rho_growth
        for split in self.splits:
            split.rescale(self.config.rho_growth)

    def project(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Remove weights until the rest fits into what the ladder allows."""
        self.projected = self.step
        if self.config.mode == "quantize":
            return
        weights = self.targets.weights(self.graph)
        self.rate.relief = self.allowed / max(self.budget, 1)
        masks = self.rate.project(weights, self.bits, self.allowed, self.layers)
        self._apply(masks, optimizer if self.config.momentum == "mask" else None)

    def _recalibrate(self) -> None:
        """A new budget, if one is due.

        Early, while more weights are left than will stay: weights that a looser budget gives back
        when masks are fixed have learned nothing.
        """
        if self.recalibrate is None:
            return
        first, last = self.config.ladder / 2, 1 - self.config.finetune
        span = last - first
        due = math.floor(_CALIBRATIONS * (self.progress - first) / span) + 1 if span > 0 else 0
        if due > self.recalibrated:
            self.recalibrated = due
            self.budget = self.recalibrate(self, [weight != 0 for _, _, weight in self._each()])

    def update_duals(self) -> None:
        """Choose bits, project the duplicates onto codebooks, and add up the differences."""
        self.doubled = self.step
        if self.config.mode == "prune":
            return
        rows = list(self._each())
        goals = [split.target(weight) for _, split, weight in rows]
        if self.choosing:
            self._choose(goals)
            goals = [split.target(weight) for _, split, weight in rows]
        moved = 0.0
        for (target, split, weight), goal, bits in zip(rows, goals, self.bits, strict=True):
            if target.quantized:
                moved += split.update(weight, self._codebook(goal, bits).nearest(goal)) ** 2
        self.dual_residual = self.rho * moved**0.5

    def _choose(self, goals: list[Tensor]) -> None:
        """Bits of the layers; by price they may come to more than is allowed: project again."""
        weights = self.targets.weights(self.graph)
        bits = self.rate.choose(goals, weights, self.bits, self.allowed, self.layers)
        changed, self.bits = bits != self.bits, bits
        if changed and self.config.mode == "both" and self.rate.size(weights, bits) > self.allowed:
            self._apply(self.rate.project(weights, bits, self.allowed, self.layers), None)

    def fit(self) -> None:
        """Fit the codebooks of the weights as they are."""
        found = {
            target.name: self._codebook(weight, bits)
            for (target, _, weight), bits in zip(self._each(), self.bits, strict=True)
            if target.quantized
        }
        set_codebooks(self.graph, found)

    def fix(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Fix masks and bits: from here on training sees the levels."""
        self.rate.relief = 1.0
        if self.settle is not None:
            self.settle(self)
        else:
            self.project(optimizer)
        self.masks = [weight != 0 for _, _, weight in self._each()]
        self.fit()
        self._round_rest()
        train_through(self.graph, through=True)

    def report(self) -> dict[str, Any]:
        """What the history tells of the alternation."""
        weights = self.targets.weights(self.graph)
        told: dict[str, Any] = {
            "bits": list(self.bits),
            "nonzeros": [int(torch.count_nonzero(w)) for w in weights],
            "allowed_bits": self.allowed,
        }
        if not self.settled and self.config.mode != "prune":
            residual = sum(s.residual(w) ** 2 for _, s, w in self._each())
            told |= {"primal_residual": residual**0.5, "dual_residual": self.dual_residual}
        return told

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; weights and codebooks are in the model's state."""
        return {
            "step": self.step,
            "projected": self.projected,
            "doubled": self.doubled,
            "dual_residual": self.dual_residual,
            "rho": self.rho,
            "first": self.first,
            "budget": self.budget,
            "recalibrated": self.recalibrated,
            "multiplier": self.rate.multiplier,
            "bits": list(self.bits),
            "duplicates": [split.duplicate for split in self.splits],
            "duals": [split.dual for split in self.splits],
            "masks": list(self.masks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.step, self.rho = int(state["step"]), float(state["rho"])
        self.first, self.recalibrated = int(state["first"]), int(state["recalibrated"])
        self.projected, self.doubled = int(state["projected"]), int(state["doubled"])
        self.budget, self.bits = int(state["budget"]), [int(b) for b in state["bits"]]
        self.rate.multiplier = float(state["multiplier"])
        self.dual_residual = float(state["dual_residual"])
        pairs = zip(state["duplicates"], state["duals"], strict=True)
        self.splits = [Split(duplicate, dual) for duplicate, dual in pairs]
        self.masks = list(state["masks"])
        self.graph.codebooks.update(read_codebooks(self.graph))
        train_through(self.graph, through=self.settled)

    def _each(self) -> Any:
        weights = self.targets.weights(self.graph)
        return zip(self.targets.rows, self.splits, weights, strict=True)

    def _codebook(self, values: Tensor, bits: int) -> Codebook:
        return codebook_of(values, bits, self.config, self.significand)

    def _rounded(self, codebook: Codebook) -> Codebook:
        if self.significand >= FULL or codebook.kind == "uniform":
            return codebook
        return rounded_codebook(codebook, self.significand)

    def _refit(self) -> None:
        """A few steps of Lloyd's algorithm from the codebooks as they are."""
        found = {}
        for target, _, weight in self._each():
            if target.quantized:
                book = self.graph.codebooks[target.name]
                if not book.reserved_zero and book.kind == "free" and bool((weight == 0).any()):
                    # A method before this one has removed weights: no level may take their place.
                    book = self._codebook(weight, book.bits)
                found[target.name] = self._rounded(refit(book, weight))
        set_codebooks(self.graph, found)

    def _round_rest(self) -> None:
        round_rest(self.graph, self.targets, self.significand)

    def _keep_masks(self, optimizer: torch.optim.Optimizer) -> None:
        self._apply(self.masks, optimizer)

    def _apply(self, masks: list[Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        for (target, _, weight), mask in zip(self._each(), masks, strict=True):
            weight.masked_fill_(~mask, 0.0)
            if optimizer is not None:
                zero_state(optimizer, self.graph.parameter(target.site), target.site, ~mask)
