"""What limits will reach when a model is quantized, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from energy_model.cost import CostTable
from energy_model.errors import InfeasibleBudget
from energy_model.resolved import ResolvedLimit
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph, Site
from passes.methods.quantize_config import Quantize
from passes.quantize.eligible import Eligible, is_linear
from passes.quantize.placement import Place
from passes.quantize.prediction import predicted_file_bytes
from passes.quantize.widths import with_widths


def block_of(config: Quantize, graph: ModelGraph, site: Site) -> int | None:
    """Columns of a weight that share a scale; `None` is one scale for each output channel."""
    return config.block if is_linear(graph, site) else None


class Forecast:
    """Values of limits, by the width of the weights. Pure.

    Args:
        config: The method's configuration.
        graph: The traced model.
        chosen: The weights that are quantized.
        found: Where quantizers of activations go.
    """

    def __init__(
        self, config: Quantize, graph: ModelGraph, chosen: Eligible, found: Sequence[Place]
    ) -> None:
        self._config, self._graph, self._chosen, self._places = config, graph, chosen, found

    def widths(self, bits: int) -> dict[str, Widths]:
        """The widths of the operands of every quantized layer."""
        inputs, written = self._config.activations, {place.of for place in self._places}
        module = self._graph.graph_module
        nodes = () if module is None else module.graph.nodes
        called = {str(node.target) for node in nodes if node.op == "call_module"}

        def outputs(site: Site) -> int | None:
            paths = [path for path, _ in site.owners if path in called]
            return inputs if paths and written.issuperset(paths) else None

        return {s.name: Widths(bits, inputs, outputs(s)) for s in self._chosen.sites}

    def reached(self, limit: ResolvedLimit, bits: int, costs: CostTable) -> int | float:
        """An upper bound on what a limit will reach: rounding only adds zeros."""
        if limit.key == "size":
            return self._file_bytes(limit, bits)
        if limit.key == "energy":
            return self._costs(bits, costs).total.energy.relaxed
        return sum(self._each("weight_bits", bits, costs).values())

    def infeasible(
        self, limits: Sequence[ResolvedLimit], bits: int, costs: CostTable
    ) -> InfeasibleBudget:
        """The error that says what the narrowest width reaches, of the first limit it fails."""
        limit, reached = next(
            (x, r) for x in limits if (r := self.reached(x, bits, costs)) > x.maximum
        )
        each = self._each(limit.key, bits, costs)
        binding, tightest = max(each, key=lambda name: each[name]), math.ceil(reached)
        narrower = "weights='auto' tries widths down to 2 bits. " if bits > 2 else ""
        kept = f"{len(self._chosen.reasons)} layers stay float. " if self._chosen.reasons else ""
        return InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,} ({limit.share(limit.maximum)} of the "
            f"original), but {tightest:,} ({limit.share(tightest)}) is what {bits} bits reach; "
            f"layer {binding!r} needs most of it",
            limit=limit.key,
            asked=limit.maximum,
            tightest=tightest,
            binding_layer=binding,
            remedy=f"Raise the limit, or also prune. {narrower}{kept}".strip(),
        )

    def _costs(self, bits: int, costs: CostTable) -> CostTable:
        sites = with_widths(self._graph.sites, self.widths(bits))
        return cost_table(replace(self._graph, sites=sites), costs.hardware)

    def _file_bytes(self, limit: ResolvedLimit, bits: int) -> int:
        blocks = {s.name: block_of(self._config, self._graph, s) for s in self._chosen.sites}
        return predicted_file_bytes(
            self._graph,
            int(limit.base),
            {site.name: bits for site in self._chosen.sites},
            blocks={name: block for name, block in blocks.items() if block is not None},
            quantizers=len(self._places),
        )

    def _each(self, key: str, bits: int, costs: CostTable) -> dict[str, int | float]:
        """What every layer takes of a limit."""
        if key == "energy":
            return {row.name: row.energy.relaxed for row in self._costs(bits, costs)}
        quantized = {site.name for site in self._chosen.sites}
        rows = [costs[site.name] for site in self._graph.compressible]
        count = "weights" if key == "size" else "nonzeros"
        return {
            row.name: int(getattr(row, count) * (bits if row.name in quantized else row.bits))
            for row in rows
        }
