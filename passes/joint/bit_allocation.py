"""Which width every layer gets when its weights are given.

V-step of Yang, Gui, Zhu, Liu, CVPR 2020: with counts k and errors E(b) of the best codebooks,

    min  sum_l E_l(b_l)   s.t.   sum_l b_l k_l <= S,

a multiple-choice knapsack; theirs is a greedy in float32, this one is exact, or says its bound.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.joint.choice import Group, choose
from passes.joint.codebook import WIDTHS
from passes.joint.points import Floats, Places


@dataclass(frozen=True, slots=True)
class Allocation:
    """A width for every layer.

    Attributes:
        bits: Per layer.
        cost: Sum of the chosen costs.
        lower_bound: No allocation within the budget costs less.
        size: Bits of all nonzero weights.
        exact: The allocation is proved optimal.
    """

    bits: list[int]
    cost: float
    lower_bound: float
    size: int
    exact: bool

    @property
    def gap(self) -> float:
        """By how much the cost may lie above the optimum."""
        return self.cost - self.lower_bound


def allocate_bits(
    costs: Tensor, nonzeros: Tensor, budget_bits: int, *, exact: bool = True
) -> Allocation:
    """The widths of least total cost whose sizes fit a budget.

    Args:
        costs: Cost of each layer with 1 to 8 bits, `(L, 8)`; infinite where a width is forbidden.
        nonzeros: Weights that each layer codes, integers of shape `(L,)`. A layer without any gets
            its smallest allowed width.
        budget_bits: Limit of the sum of bits times nonzeros.
        exact: Prove the result optimal where that is possible; otherwise hull greedy, filling and
            pairwise exchange.

    Raises:
        ArgumentError: A shape does not fit, a cost is NaN or minus infinity, a count is negative,
            or a layer has no allowed width.
        InfeasibleBudget: The smallest allowed widths do not fit.
    """
    table, counts, budget = _checked(costs, nonzeros, budget_bits)
    widths = np.asarray(WIDTHS, dtype=np.int64)
    groups = []
    for row, count in zip(table, counts, strict=True):
        allowed = row if count else _first_only(row)
        groups.append(Group.of(widths * count, allowed))
    tightest = sum(int(group.size[0]) for group in groups)
    if tightest > budget:
        heaviest = int(np.argmax([int(group.size[0]) for group in groups]))
        raise InfeasibleBudget(
            f"the smallest allowed widths take {tightest} bits of {budget}",
            limit="weight_bits",
            asked=budget,
            tightest=tightest,
            binding_layer=str(heaviest),
            remedy="Raise the budget, keep fewer weights, or allow smaller widths.",
        )
    found = choose(groups, budget, exact=exact)
    bits = [int(widths[option]) for option in found.options]
    return Allocation(bits, found.cost, found.lower_bound, found.size, found.exact)


def _first_only(row: Floats) -> Floats:
    """Costs of a layer without weights: only its smallest width is worth anything."""
    first = int(np.argmax(np.isfinite(row)))
    return np.where(np.arange(len(row)) == first, row, np.inf)


def _checked(costs: Tensor, nonzeros: Tensor, budget_bits: int) -> tuple[Floats, Places, int]:
    counts = torch.as_tensor(nonzeros).detach().cpu()
    table = torch.as_tensor(costs).detach().to("cpu", torch.float64).numpy()
    where = "allocate_bits"
    if table.ndim != 2 or table.shape[1] != len(WIDTHS) or counts.shape != table.shape[:1]:
        raise ArgumentError(
            f"costs of shape {table.shape} and nonzeros of shape {tuple(counts.shape)}",
            where=where,
            remedy=f"Give costs (L, {len(WIDTHS)}) and nonzeros (L,).",
        )
    if counts.dtype.is_floating_point or bool((counts < 0).any()):
        raise ArgumentError(
            "counts are negative or no integers", where=f"{where}.nonzeros", remedy="Count again."
        )
    if np.isnan(table).any() or (table == -np.inf).any():
        raise ArgumentError(
            "a cost is NaN or minus infinity",
            where=f"{where}.costs",
            remedy="Check the weights; forbid a width by an infinite cost.",
        )
    barred = np.flatnonzero(~np.isfinite(table).any(axis=1))
    if len(barred):
        raise ArgumentError(
            f"no width is allowed for layer {barred[0]}",
            where=f"{where}.costs",
            remedy="Give a finite cost for at least one width of every layer.",
        )
    try:
        budget = operator.index(budget_bits)
    except TypeError as error:
        raise ArgumentError(
            f"{budget_bits!r} is no whole number", where=f"{where}.budget_bits"
        ) from error
    return table, counts.numpy().astype(np.int64), budget
