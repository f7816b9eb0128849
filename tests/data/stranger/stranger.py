"""Random pruning: all that a package outside the tree needs in order to add a method."""

from dataclasses import dataclass

import torch

from passes.methods.base import Method, MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.plan import Plan, PlanRow
from passes.rewrite.masks import attach_masks, bake_masks


@dataclass(frozen=True)
class RandomPruning(MethodConfig):
    """Keeps the same share of every layer, at random."""


class RandomPruner(Method):
    def plan(self, graph, costs, limits, *, one_shot=True):
        [limit] = limits
        sites = graph.compressible
        rows = (PlanRow(s.name, s.size, s.size * limit.maximum // limit.base) for s in sites)
        return Plan("dice", tuple(rows), allowed={limit.key: limit.maximum})

    def prepare(self, graph, plan, run):
        masks = {}
        for row in plan.rows:
            weight = graph.weight(graph.by_name[row.layer])
            keep = torch.randperm(row.size, generator=run.generator) < row.keep
            masks[row.layer] = keep.reshape(weight.shape).to(weight.device)
        attach_masks(graph, masks)

    def finalize(self, graph, run):
        bake_masks(graph)


SPEC = MethodSpec("dice", RandomPruning, RandomPruner, frozenset({"nonzeros"}), "the stranger")
