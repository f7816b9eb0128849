"""Uniform quantization: weights on symmetric grids, activations on those of a runtime.

Weights get a scale for each output channel (or block of a linear layer's inputs), fitted to the
least squared error; activations get ranges from unlabelled data. Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, is where
training through the rounding comes from; here its weights are rounded by straight-through
parametrizations, and batch norms stay apart until the model is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from energy_model.cost import CostTable
from energy_model.errors import PreconditionError
from energy_model.resolved import ResolvedLimit
from energy_model.widths import Widths
from passes.graph import Decision, ModelGraph, Site
from passes.inputs import Call
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.phases import Phase
from passes.methods.plan import Plan, PlanRow
from passes.methods.quantize_config import Quantize
from passes.methods.quantize_forecast import Forecast, block_of
from passes.quantize.calibrate import calibrate
from passes.quantize.eligible import Eligible, axis_of, eligible, is_linear
from passes.quantize.encoding import WIDTHS, Encoding
from passes.quantize.fit import fit_encoding
from passes.quantize.placement import Place, insert_quantizers, module_of, placed
from passes.quantize.weights import (
    attach_weight_quantizers,
    bake_weight_quantizers,
    encodings_of,
    masked_weight,
    refit,
    set_encodings,
)
from passes.quantize.widths import apply_widths

SERVES = frozenset({"weight_bits", "size", "energy"})


class Quantization(Method):
    """Rounds weights to grids of few levels, and activations to those of integers."""

    config: Quantize

    def __init__(self, config: Quantize) -> None:
        super().__init__(config)
        self._graph: ModelGraph | None = None
        self._run = Run()
        self._step = 0

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Choose the width of the weights; see `Method.plan`.

        What a limit will reach is predicted with all nonzero weights: rounding only adds zeros.
        """
        chosen, found = self._chosen(graph)
        served = [limit for limit in limits if limit.key in SERVES]
        forecast = Forecast(self.config, graph, chosen, found)
        for bits in self._widths():
            reached = {limit.key: forecast.reached(limit, bits, costs) for limit in served}
            if all(reached[limit.key] <= limit.maximum for limit in served):
                break
        else:
            raise forecast.infeasible(served, bits, costs)
        return Plan(
            SPEC.name,
            tuple(self._row(graph, chosen, site, costs, bits) for site in graph.sites),
            reached=reached,
            allowed={limit.key: limit.maximum for limit in served},
            details={
                "bits": {site.name: bits for site in chosen.sites},
                "activations": self.config.activations,
            },
        )

    def announced_widths(self, graph: ModelGraph) -> dict[str, Widths]:
        """The widths of the layers; with `weights="auto"` the largest that can come out of it."""
        return Forecast(self.config, graph, *self._chosen(graph)).widths(self._widths()[0])

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Attach quantizers to weights, and put those of activations into the graph.

        Raises:
            PreconditionError: Activations are to be quantized and there is no data, or the model
                cannot be traced as a whole; a weight is not finite.
        """
        self._graph, self._run = graph, run
        chosen, found = self._chosen(graph)
        if self.config.activations is not None:
            self._batches(run)
        bits = {name: int(b) for name, b in plan.details["bits"].items()}
        graph.decisions += chosen.decisions() + self._without_blocks(graph, chosen)
        encodings = {s.name: self._fitted(graph, s, bits[s.name]) for s in chosen.sites}
        attach_weight_quantizers(graph, encodings)
        graph.encodings.update(encodings)
        if self.config.activations is not None:
            graph.decisions += insert_quantizers(
                graph, found, self.config.activations, signed=self.config.signed
            )
            self._calibrate(graph, run)
        apply_widths(graph)

    def on_reconstructed(self, graph: ModelGraph, run: Run) -> None:
        """Take over scales that were fitted anew, and calibrate activations again."""
        set_encodings(graph, graph.encodings)
        if self.config.activations is not None:
            self._calibrate(graph, run)

    def on_phase_start(self, phase: Phase) -> None:
        """Fit the scales to the weights as training finds them."""
        self._step = 0
        self._refit()

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Note how far training has come."""
        self._step = step

    def on_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Fit the scales for the next epoch, before the model is evaluated with them."""
        self._refit()

    def needs_shapes(self) -> str:
        """Blocks of inputs that share a scale must stay whole."""
        return "" if self.config.block is None else "inputs share scales in blocks"

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Write the levels into the weights; the graph keeps their encodings.

        Raises:
            PostconditionError: A weight is off its grid.
        """
        graph.encodings.update(bake_weight_quantizers(graph))

    def state_dict(self) -> dict[str, Any]:
        """How far training has come; scales and ranges are buffers of the model."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._step = int(state["step"])
        if self._graph is not None:
            self._graph.encodings.update(encodings_of(self._graph))

    def _widths(self) -> tuple[int, ...]:
        given = self.config.weights
        return tuple(reversed(WIDTHS)) if given == "auto" else (int(given),)

    def _chosen(self, graph: ModelGraph) -> tuple[Eligible, tuple[Place, ...]]:
        """The weights to quantize, and where quantizers of activations go."""
        found: tuple[Place, ...] = ()
        static = self.config.activations is not None
        if static:
            module_of(graph)
        chosen = eligible(graph, static=static)
        if static:
            chosen, found = placed(graph, chosen, outputs=self.config.outputs)
        if not chosen.sites:
            told = "; ".join(f"{name}: {why}" for name, why in chosen.reasons.items())
            raise PreconditionError(
                f"no layer can be quantized ({told:.300})",
                where=type(graph.module).__name__,
                remedy="Linear layers and convolutions can be, where the model calls them; with "
                "activations=None also attention.",
            )
        return chosen, found

    def _fitted(self, graph: ModelGraph, site: Site, bits: int) -> Encoding:
        return fit_encoding(
            masked_weight(graph, site),
            bits,
            axis=axis_of(graph, site),
            block=block_of(self.config, graph, site),
            kind=self.config.fit,
            name=site.name,
        )

    def _without_blocks(self, graph: ModelGraph, chosen: Eligible) -> list[Decision]:
        if self.config.block is None:
            return []
        why = "blocks of inputs serve linear layers alone"
        return [
            Decision(site.name, "a scale for each channel", why)
            for site in chosen.sites
            if not is_linear(graph, site)
        ]

    def _row(
        self, graph: ModelGraph, chosen: Eligible, site: Site, costs: CostTable, bits: int
    ) -> PlanRow:
        why = chosen.reasons.get(site.name)
        if why is None:
            block = block_of(self.config, graph, site)
            why = f"{bits} bits per " + ("channel" if block is None else f"block of {block}")
        return PlanRow(site.name, site.size, costs[site.name].nonzeros, why)

    def _calibrate(self, graph: ModelGraph, run: Run) -> None:
        batches = self._batches(run)(self.config.batches)
        graph.decisions += calibrate(graph, batches, self.config.ranges)

    def _batches(self, run: Run) -> Callable[[int], Iterator[Call]]:
        if run.batches is None:
            raise PreconditionError(
                "activations cannot be quantized without data to calibrate them with",
                where=f"method {SPEC.name!r}",
                remedy="Pass data= (labels are not needed), or Quantize(activations=None).",
            )
        return run.batches

    def _refit(self) -> None:
        held = self._step > (1 - self.config.hold) * self._run.total_steps
        if self._graph is not None and self.config.refit and not held:
            refit(self._graph, self.config.fit)
            self._graph.encodings.update(encodings_of(self._graph))


SPEC = MethodSpec(
    name="quantize",
    config=Quantize,
    method=Quantization,
    serves=SERVES,
    source="Jacob et al., CVPR 2018 (integer inference)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"grid"}),
)
