"""The method `joint`: sparsity and bits of every layer chosen together, under one budget of bits.

Yang, Gui, Zhu, Liu, "Automatic Neural Network Compression by Sparsity-Quantization Joint Learning",
CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from energy_model.cost import CostTable
from energy_model.errors import ArgumentError
from energy_model.resolved import ResolvedLimit, limit_on
from energy_model.widths import Widths
from passes.graph import ModelGraph
from passes.joint.quantizer import attach_codebooks, bake_codebooks, read_codebooks, set_codebooks
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.joint.alternation import Alternation
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_limit import UNIFORM, EnergyLimit
from passes.methods.joint.energy_training import EnergyAlternation
from passes.methods.joint.finish import Finish
from passes.methods.joint.finished import record, round_rest, write_solution
from passes.methods.joint.rates import NominalRate
from passes.methods.joint.setting import Setting
from passes.methods.joint.solve import Solution, with_zeros
from passes.methods.joint.targets import find_targets
from passes.methods.phases import Phase
from passes.methods.plan import Plan, PlanRow

SERVES = frozenset({"weight_bits", "archive", "energy"})


class JointCompression(Method):
    """Alternates between training, projection onto the budget, and quantization.

    In one shot, sparsity and bits are chosen once, together; for training see
    `passes.methods.joint.alternation`.
    """

    config: Joint

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._run = Run()
        self._training: Alternation | None = None
        self._overhead = 0
        self._solved: Solution | None = None
        self._setting: Setting | None = None

    def announced_widths(self, graph: ModelGraph) -> dict[str, Widths]:
        """Widths of uniform levels, the widest that may come out; codebooks change no operand."""
        if self.config.mode == "prune" or self.config.levels != "uniform":
            return {}
        rows = find_targets(graph, self.config, trained=not self._run.one_shot).rows
        return {t.name: replace(t.site.widths, weights=max(t.widths)) for t in rows if t.quantized}

    def claims(self, key: str) -> bool:
        """Bits are its choice: methods before it would have to take them as given."""
        chosen = self.config.mode == "both" or self.config.bits is None
        return key == "weight_bits" and chosen

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Measure what of an archive is no weight."""
        self._run = run
        if limit_on(run.limits, "archive") is not None:
            setting = self._adopted(graph, run.limits, run.costs, trained=not run.one_shot)
            self._overhead = Finish(graph, setting, run.archive).fit.overhead()

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Masks and bits of the weights as they are now; training goes on from there."""
        self._require_limit(limits)
        setting = self._adopted(graph, limits, costs, trained=not one_shot)
        setting.check()
        targets, rate, archive = setting.targets, setting.rate(), 0
        weights = targets.weights(graph)
        if one_shot:
            solution, archive = Finish(graph, setting, self._run.archive).once()
            self._solved, bits = solution, list(solution.bits)
            values = solution.values(weights)
        else:
            start, earlier = setting.config.start_bits, self._run.bits
            bits = [t.first_bits(start, earlier) for t in targets.rows]
            masks = [w != 0 for w in weights]
            if setting.config.mode != "quantize":
                layers = [t.bounds for t in targets.rows]
                masks = rate.project(weights, bits, setting.budget, layers)
            values = [w.detach().masked_fill(~m, 0) for w, m in zip(weights, masks, strict=True)]
        told = "bits" if one_shot else "bits at first"
        rows = tuple(
            PlanRow(t.name, t.site.size, int(torch.count_nonzero(v)), f"{b} {told}")
            for t, v, b in zip(targets.rows, values, bits, strict=True)
        )
        size = rate.size(values, bits)
        known: dict[str, int | float] = {
            "weight_bits": NominalRate().size(values, bits) + targets.fixed,
            "archive": archive if one_shot else self._overhead + size // 8,
        }
        if setting.energy is not None:
            known["energy"] = setting.energy.reached(size)
        return Plan(
            "joint",
            rows,
            {limit.key: known[limit.key] for limit in limits},
            {limit.key: limit.maximum for limit in limits},
            None,
            {
                "bits": {t.name: b for t, b in zip(targets.rows, bits, strict=True)},
                "overhead_bytes": self._overhead,
            },
        )

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """In one shot write the solution; for training attach codebooks to the weights."""
        self._run = run
        setting = self._adopted(graph, run.limits, run.costs, trained=not run.one_shot)
        self._setting = setting
        graph.decisions += setting.targets.decisions
        if setting.config.levels != self.config.levels:
            graph.decisions.append(UNIFORM)
        finish = Finish(graph, setting, run.archive)
        if run.one_shot:
            round_rest(graph, setting.targets, setting.significand)
            write_solution(graph, setting.targets, self._solved or finish.once()[0])
            _hold_energy(graph, setting)
            return
        quantized = tuple(t.site for t in setting.targets.rows if t.quantized)
        attach_codebooks(graph, quantized, kind=setting.config.levels)
        kind = Alternation if setting.energy is None else EnergyAlternation
        self._training = kind(
            graph,
            setting.targets,
            setting.rate(),
            setting.config,
            setting.significand,
            setting.budget,
            run.total_steps,
            run.epoch_steps,
            finish.settle,
            run.bits,
            None if setting.archive is None else finish.recalibrated,
        )

    def on_phase_start(self, phase: Phase) -> None:
        """Begin the alternation at the weights as they are."""
        if self._training is not None:
            self._training.start()

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull weights to their duplicates, where that is not done by proximal steps."""
        if self._training is not None:
            self._training.add_pull()

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Proximal step, projection and duals; in the end masks and codebooks."""
        if self._training is not None:
            self._training.after_step(step, optimizer)

    def on_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Project, and fit the codebooks that the model is evaluated with."""
        if self._training is not None:
            self._training.after_epoch(optimizer)

    def report(self) -> dict[str, Any]:
        """Bits, nonzeros and residuals."""
        return {} if self._training is None else self._training.report()

    def can_be_result(self) -> bool:
        """Whether the budget has come down to its target; an archive only when masks are fixed."""
        training = self._training
        if training is None:
            return True
        if limit_on(self._run.limits, "archive") is not None:
            return training.settled
        return training.at_target

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Write the levels into the weights; the graph keeps their codebooks.

        Raises:
            InfeasibleBudget: The archive's limit is below what it takes without any weight.
        """
        training, setting = self._training, self._setting
        if run.one_shot or training is None or setting is None:
            return
        if not training.bits:  # there was no phase, as without epochs
            training.start()
        config = setting.config
        if not read_codebooks(graph) and config.mode != "prune":
            training.fix(None)
        if config.mode != "quantize" and not training.settled:
            training.step = training.total
            training.project(None)
        set_codebooks(graph, with_zeros(graph, config, training.significand))
        codebooks = bake_codebooks(graph)
        graph.codebooks.clear()
        setting = replace(setting, targets=find_targets(graph, config, trained=True))
        if setting.archive is not None:
            Finish(graph, setting, run.archive).trim(codebooks, setting.archive)
        else:
            record(graph, codebooks)
            _hold_energy(graph, setting)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self._training is not None:
            self._training.load_state_dict(state)

    def _adopted(
        self,
        graph: ModelGraph,
        limits: Sequence[ResolvedLimit],
        costs: CostTable | None,
        *,
        trained: bool,
    ) -> Setting:
        hardware = None if costs is None else costs.hardware
        parts = (graph, self.config, limits, hardware)
        return Setting.of(*parts, trained=trained, overhead=self._overhead)

    def _require_limit(self, limits: Sequence[ResolvedLimit]) -> None:
        """Raise if nothing says how much may stay; in a list another method may have limits."""
        free = self.config.bits is None and self.config.mode != "prune"
        if free and not limits and not self._run.limits:
            raise ArgumentError(
                "nothing says how many bits a weight may have",
                where="method 'joint'",
                remedy="Give a limit on weight_bits, archive or energy, or Joint(bits=...).",
            )


def _hold_energy(graph: ModelGraph, setting: Setting) -> None:
    """The promise: relaxed energy of the finished weights is within its limit."""
    if setting.energy is None:
        return
    # Of layers that are left alone, training may have given back weights that were zero.
    limit, hardware = setting.energy.limit, setting.energy.hardware
    now = EnergyLimit.of(graph, setting.targets, limit, hardware)
    now.hold(graph, setting.targets, setting.energy_rate())


SPEC = MethodSpec(
    name="joint",
    config=Joint,
    method=JointCompression,
    serves=SERVES,
    source="Yang, Gui, Zhu, Liu, CVPR 2020 (joint sparsity and quantization)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"zeros", "grid"}),
)
