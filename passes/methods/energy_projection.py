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

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import ArgumentError
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph
from passes.methods.base import MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.input_masking import InputMasking, least_saved
from passes.methods.phases import Phase, PhaseEnd
from passes.methods.plan import Plan
from passes.methods.problem import SERVES, Problem
from passes.methods.sparsify import Sparsifier, SparsifyConfig
from passes.projection.allocate import Allocation, allocate
from passes.projection.fill import fill
from passes.rewrite.masked_channels import remove_masked_channels

_WEIGHTS, _MASKS = "weights", "masks"


@dataclass(frozen=True)
class EnergyProjection(SparsifyConfig):
    """Configuration of the energy projection; the other fields are those of `SparsifyConfig`.

    Attributes:
        fill: After the longest prefix, also take later weights that still fit.
        input_mask: Also train masks on the inputs of convolutions, in phases of their own between
            those of the weights. They fix the input resolution.
        mask_lr: Learning rate of the masks (Adam).
        mask_weight_decay: Their weight decay, added to the gradient.
        mask_keep: What the masks keep after each of their phases, one alternation for each; a share
            of what all inputs cost, and of what it costs to compute those channels that can go.
        mask_cost: What an input counts: its `"energy"`, or 1 (`"count"`, the paper's).
        mask_score: What inputs are ranked by: the squared `"gradient"` of their entry, or the
            `"value"` of it (the paper's; with `mask_cost="energy"` all values stay so close to 1
            that the price alone decides).
        start: Which phase comes first; `"masks"` for a budget below what activations alone cost.
        stop_early: Stop when an alternation has not improved the validation metric.
    """

    fill: bool = True
    input_mask: bool = False
    mask_lr: float = 1e-4
    mask_weight_decay: float = 1e-5
    mask_keep: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    mask_cost: Literal["energy", "count"] = "energy"
    mask_score: Literal["gradient", "value"] = "gradient"
    start: Literal["weights", "masks"] = "weights"
    stop_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fill", "input_mask", "stop_early"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        for name in ("mask_lr", "mask_weight_decay"):
            value = getattr(self, name)
            self._require(name, _finite(value) and value >= 0, "a number from 0")
        shares = tuple(self.mask_keep) if isinstance(self.mask_keep, list | tuple) else ()
        falling = all(a >= b for a, b in itertools.pairwise(shares))
        valid = bool(shares) and all(_finite(q) and 0 <= q <= 1 for q in shares) and falling
        self._require("mask_keep", valid, "shares from 1 to 0 that do not rise")
        object.__setattr__(self, "mask_keep", shares)
        self._require("mask_cost", self.mask_cost in ("energy", "count"), "'energy' or 'count'")
        scores = ("gradient", "value")
        self._require("mask_score", self.mask_score in scores, f"one of {scores}")
        self._require("start", self.start in ("weights", "masks"), "'weights' or 'masks'")
        alone = "None together with input masks, which remove channels out of the pattern"
        self._require("pattern", self.pattern is None or not self.input_mask, alone)


def _finite(value: object) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(float(value))  # type: ignore[arg-type]


class WeightedProjection(Sparsifier):
    """Projects all layers at once onto the budget."""

    name = "energy"
    config: EnergyProjection

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._masking: InputMasking | None = None
        self._phase = _WEIGHTS
        self._round = 0
        self._rounded: list[Tensor] = []

    def allocation(self, problem: Problem) -> Allocation:
        """Greedy by value per price, with its certificate."""
        parts = (problem.norms, problem.ladders)
        chosen = allocate(*parts, problem.capacities, histograms=problem.histograms)
        if self.config.fill:
            chosen = fill(chosen, *parts, problem.histograms)
        return chosen

    def saved(self, graph: ModelGraph, costs: CostTable) -> int | float:
        """What the first phase of masks will save at least, if it comes first.

        Rows that are fetched again are left out: masks may raise or lower what they cost.
        """
        config = self.config
        if not config.input_mask or config.start == "weights":
            return 0
        weighted = config.mask_cost == "energy"
        return least_saved(graph, costs.hardware, config.mask_keep[0], weighted=weighted)

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Decide how many weights every layer keeps; see `Method.plan`.

        Raises:
            ArgumentError: Masks are asked for, and nothing will be trained.
        """
        if self.config.input_mask and one_shot:
            raise ArgumentError(
                "input masks are trained, and there is nothing to train on",
                where="EnergyProjection.input_mask",
                remedy="Pass labelled data, or leave input_mask out.",
            )
        return super().plan(graph, costs, limits, one_shot=one_shot)

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Put masks of ones into the graph, if they are asked for; see `Sparsifier.prepare`."""
        super().prepare(graph, plan, run)
        if self.config.input_mask and run.costs is not None:
            weighted = self.config.mask_cost == "energy"
            scored = self.config.mask_score == "gradient"
            hardware = run.costs.hardware
            self._masking = InputMasking.attach(graph, hardware, weighted=weighted, scored=scored)

    def next_phase(self, ended: Sequence[PhaseEnd]) -> Phase | None:
        """Weights and masks in turn, as long as the metric improves and shares are left."""
        if self._masking is None:
            return super().next_phase(ended)
        rounds, first = len(self.config.mask_keep), self.config.start == "masks"
        if len(ended) >= 2 * rounds + (not first):
            return None
        metrics = [end.metric for end in ended if end.name == _WEIGHTS]
        if self.config.stop_early and ended and ended[-1].name == _WEIGHTS and len(metrics) > 1:
            last, before = metrics[-1], [m for m in metrics[:-1] if m is not None]
            if last is not None and before and last <= max(before):
                return None
        return self._mask_phase() if (len(ended) % 2 == 1) != first else Phase(_WEIGHTS)

    def _mask_phase(self) -> Phase:
        assert self._masking is not None
        train = {
            "optimizer": "adam",
            "lr": self.config.mask_lr,
            "min_lr": 0.0,
            "weight_decay": self.config.mask_weight_decay,
            "decay_norm_and_bias": True,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "clip_grad": None,
        }
        return Phase(_MASKS, self._masking.tensors, train, candidate=False)

    def on_phase_start(self, phase: Phase) -> None:
        """Start the budget's fall, or keep what the masks are before they are trained."""
        self._phase = phase.name
        if self._masking is None or phase.name == _WEIGHTS:
            super().on_phase_start(phase)
            return
        self._step = self._projected_at = 0
        self._rounded = [tensor.detach().clone() for tensor in self._masking.tensors]
        self._masking.restart()

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what the masks' entries are worth."""
        if self._masking is not None and self._phase == _MASKS:
            self._masking.note_gradients()

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Project what is trained every `interval` steps."""
        if self._masking is not None and self._phase == _MASKS:
            self._masking.clamp()
        super().on_step(step, optimizer)

    def on_phase_end(self, phase: Phase) -> None:
        """Round the masks, or mask for nothing what no weight reads any more."""
        if self._masking is None:
            return
        if phase.name == _MASKS:
            self._masking.settle(self._share, self._rounded)
            self._round += 1
        else:
            self._masking.drop_unmet()
            self._settled = True
        self._masking.settle_channels(self._least())

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Project onto the final budget; then take away what the masks have made useless."""
        if self._masking is None:
            super().finalize(graph, run)
            return
        self._phase = _WEIGHTS
        self._masking.refresh()  # the best epoch may be an earlier one
        super().finalize(graph, run)
        least = self._least()
        unmet, silenced = self._masking.drop_unmet(), self._masking.settle_channels(least)
        kept = ", ".join(str(u.inputs) for s in graph.sites for u in s.uses if u.inputs)
        why = f"{unmet:,} inputs met no weight, {silenced:,} weights met no input"
        graph.decisions.append(Decision("", "input masks", why, after=kept or "all inputs kept"))
        graph.decisions += remove_masked_channels(graph, least)
        self._masking.still_saved = 0
        super().finalize(graph, run)  # whatever was or was not removed, the budget holds

    def still_saved(self) -> int | float:
        """Energy of the channels that are masked by now and removed at the end."""
        return 0 if self._masking is None else self._masking.still_saved

    def _least(self) -> dict[str, int]:
        """Weights that every layer keeps at least."""
        problem = self._problem_now(self._run.limits)
        return {s.name: k for s, k in zip(problem.sites, problem.minimums, strict=True)}

    @property
    def _share(self) -> float:
        """What the masks keep after this phase."""
        return self.config.mask_keep[min(self._round, len(self.config.mask_keep) - 1)]

    def _project_now(self) -> None:
        if self._masking is None or self._phase == _WEIGHTS:
            super()._project_now()
            return
        total = max(1, round(self._run.total_steps * (1 - self.config.hold)))
        done = min(1.0, self._step / total)
        before = self._masking.share
        self._masking.project(before + (self._share - before) * done)
        self._projected_at = self._step

    def state_dict(self) -> dict[str, Any]:
        """Where the schedules stand."""
        state = super().state_dict()
        if self._masking is not None:
            state |= {"phase": self._phase, "round": self._round, "rounded": self._rounded}
            state |= {"masking": self._masking.state_dict(), "settled": self._settled}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        if self._masking is not None:
            self._phase, self._round = state["phase"], int(state["round"])
            self._rounded, self._settled = list(state["rounded"]), bool(state["settled"])
            self._masking.load_state_dict(state["masking"])


SPEC = MethodSpec(
    name="energy",
    config=EnergyProjection,
    method=WeightedProjection,
    serves=SERVES,
    source="Yang, Zhu, Liu, ICLR 2019 (weighted sparse projection)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"zeros"}),
)
