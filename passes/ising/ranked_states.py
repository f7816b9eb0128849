"""States that are told by how many nodes of every group stay: the ones with the highest scores."""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_numbers


def best_of_groups(counts: Tensor, scores: Tensor, layout: Layout) -> Tensor:
    """Of every group the nodes with the highest scores, bool `(states, nodes)`.

    Of equal scores the later node stays, as `passes.structure.ranking.Ranking` has it.

    Args:
        counts: Nodes that stay of each group, int64 `(states, groups)`.
        scores: `(nodes,)`.
        layout: The groups.

    Raises:
        ArgumentError: Shapes do not fit, or a score is not finite.
    """
    found = checked_numbers(scores, (layout.nodes,), "scores")
    if not bool(torch.isfinite(found).all()):
        raise ArgumentError("are not finite", where="scores")
    if counts.dtype != torch.int64 or tuple(counts.shape[1:]) != (len(layout.names),):
        raise ArgumentError(
            f"are {counts.dtype} of shape {tuple(counts.shape)}, "
            f"expected int64 (states, {len(layout.names)})",
            where="counts of nodes that stay",
        )
    rows = torch.zeros(counts.shape[0], layout.nodes, dtype=torch.bool)
    for number, (part, size) in enumerate(zip(layout.parts.values(), layout.sizes, strict=True)):
        ranks = found[part].argsort(stable=True).argsort(stable=True)
        rows[:, part] = ranks >= size - counts[:, number, None]
    return rows
