"""Sparsity and widths chosen together under one size budget.

    min  sum_l |W_l - Q_l|^2   s.t.  sum_l b_l nonzeros(Q_l) <= S,  Q_l of at most 2^b_l levels or 0

The published method (Yang, Gui, Zhu, Liu, CVPR 2020) alternates: widths fixed, prune; counts fixed,
choose widths. That stops where neither can move alone. Here every layer lists what it can do with a
width and a count together (`layer_options`), and a multiple-choice knapsack picks: the optimum, if
no layer has more than 64 nonzeros. On larger layers rounds follow that keep, for fixed codebooks,
exactly the weights that gain most (`project_sparsity` on the gains), and fit again. Where that is
cheap the alternation is run from uniform widths as well; the best result counts.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import BoolTensor, Tensor

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.joint.bit_allocation import allocate_bits
from passes.joint.choice import Group, choose
from passes.joint.codebook import Codebook, Kind, check_request
from passes.joint.fit import codebook_costs
from passes.joint.layer_options import SMALL, Options, layer_options
from passes.joint.rounds import Problem, Solution, realise, refine
from passes.joint.sparsity import check_sizes, project_sparsity

# The alternation is run from uniform widths that keep at most so many weights.
_CHEAP = 2048
_ALTERNATIONS = 4


@dataclass(frozen=True, slots=True, eq=False)
class JointAllocation:
    """Weights that stay, and their widths; one entry per layer.

    Attributes:
        bits: Widths.
        nonzeros: Weights that are not coded as zero.
        error: Sum of squared differences of all weights from their final values, of all layers.
        size: Bits of all layers, in the count that the budget limits.
        masks: The weights that are not coded as zero.
        codebooks: Fitted to the kept weights; `codebook.nearest(weight)` where the mask is, zero
            elsewhere, is the final weight.
    """

    bits: list[int]
    nonzeros: list[int]
    error: float
    size: int
    masks: list[BoolTensor]
    codebooks: list[Codebook]


def joint_allocation(
    weights: list[Tensor],
    budget_bits: int,
    bit_widths: Sequence[int],
    *,
    kind: Kind = "free",
    least: Sequence[int] | None = None,
    fixed: Sequence[int | None] | None = None,
    honest: bool = False,
) -> JointAllocation:
    """Choose which weights stay and the width of every layer, for the least squared change.

    Args:
        weights: One tensor per layer, any shape and floating dtype; read only.
        budget_bits: Limit of the size: the sum of bits times nonzeros.
        bit_widths: Widths that a layer may have, 1 to 8.
        kind: Of the codebooks, `"free"` or `"uniform"`.
        least: Weights that each layer keeps at least; fewer where fewer are not zero, or where some
            of them are nearer to zero than to every level.
        fixed: The width of every layer that is given, `None` for the others.
        honest: Count for every layer also the entropy of its positions and its codebook, 32 bits a
            level (one scale on a uniform grid).

    Returns:
        An allocation within the budget. With at most 64 nonzeros in every layer its error is the
        least possible, unless sizes are honest.

    Raises:
        ArgumentError: A width, a kind, a length or a number that is not allowed.
        InfeasibleBudget: What every layer keeps at least does not fit with the smallest widths.
        PreconditionError: A weight is not finite or beyond float32.
    """
    problem = _problem(weights, budget_bits, bit_widths, kind, least, fixed, honest)
    if not weights:
        return JointAllocation([], [], 0.0, 0, [], [])
    options = [
        _allowed(layer_options(w, widths, problem.budget // widths[0], kind), w, n)
        for w, widths, n in zip(problem.weights, problem.widths, problem.least, strict=True)
    ]
    best = refine(problem, _chosen(problem, options))
    if best.size > problem.budget:
        raise _infeasible(problem, best.size)
    if not _is_small(weights) or honest:
        for other in _alternatives(problem, options):
            if other.size <= problem.budget and other.error < best.error:
                best = refine(problem, other)
    return JointAllocation(
        best.bits, best.nonzeros, best.error, best.size, best.masks, best.codebooks
    )


def _problem(
    weights: list[Tensor],
    budget_bits: int,
    bit_widths: Sequence[int],
    kind: Kind,
    least: Sequence[int] | None,
    fixed: Sequence[int | None] | None,
    honest: bool,
) -> Problem:
    where = "joint_allocation"
    given = [None] * len(weights) if fixed is None else list(fixed)
    if len(given) != len(weights):
        raise ArgumentError(
            f"{len(given)} widths for {len(weights)} layers",
            where=f"{where}.fixed",
            remedy="Give one, or None, for each layer.",
        )
    if not len(bit_widths):
        raise ArgumentError("no width is allowed", where=f"{where}.bit_widths", remedy="Give one.")
    for bits in (*bit_widths, *(b for b in given if b is not None)):
        check_request(bits, kind, where)
    free = sorted({operator.index(b) for b in bit_widths})
    widths = [free if b is None else [operator.index(b)] for b in given]
    _, budget, minimums = check_sizes(weights, [w[0] for w in widths], budget_bits, least, where)
    return Problem(weights, budget, widths, minimums, kind, honest)


def _is_small(weights: Sequence[Tensor]) -> bool:
    return all(int(torch.count_nonzero(weight)) <= SMALL for weight in weights)


def _allowed(options: Options, weight: Tensor, least: int) -> Options:
    """Options that keep at least so many weights, or all that are not zero."""
    wanted = min(least, int(torch.count_nonzero(weight)))
    kept = np.flatnonzero(options.kept >= wanted)
    return options.some(kept)


def _chosen(problem: Problem, options: Sequence[Options]) -> Solution:
    """Codebooks for the options that fit the budget at the least error."""
    groups = [
        Group.of(o.sizes(w.numel(), honest=problem.honest, kind=problem.kind), o.error)
        for w, o in zip(problem.weights, options, strict=True)
    ]
    tightest = sum(int(g.size[0]) if len(g.size) else problem.budget + 1 for g in groups)
    if tightest > problem.budget:
        raise _infeasible(problem, tightest)
    capacity = problem.budget
    while True:
        places = choose(groups, capacity).options
        bits = [int(o.bits[p]) for o, p in zip(options, places, strict=True)]
        masks = [o.mask(w, p) for w, o, p in zip(problem.weights, options, places, strict=True)]
        found = realise(problem, bits, masks)
        if found.size <= problem.budget or capacity == tightest:
            return found
        # Weights that are coded as zero may make the positions of a dense layer dearer.
        capacity = max(tightest, capacity - (found.size - problem.budget))


def _infeasible(problem: Problem, tightest: int) -> InfeasibleBudget:
    return InfeasibleBudget(
        f"what every layer keeps at least takes {tightest} bits of {problem.budget}",
        limit="weight_bits",
        asked=problem.budget,
        tightest=tightest,
        remedy="Raise the budget, let layers keep fewer weights, or allow smaller widths.",
    )


def _alternatives(problem: Problem, options: Sequence[Options]) -> Iterator[Solution]:
    """What uniform widths give: of the options, and by the published alternation."""
    every = sorted({bits for widths in problem.widths for bits in widths})
    for bits in every:
        uniform = [[bits] if bits in widths else widths[:1] for widths in problem.widths]
        narrow = replace(problem, widths=uniform)
        if problem.honest:
            mine = [
                o.some(np.isin(o.bits, w).nonzero()[0])
                for o, w in zip(options, uniform, strict=True)
            ]
            yield from _if_feasible(narrow, mine)
        elif problem.budget // bits <= _CHEAP:
            yield from _alternation(problem, [widths[0] for widths in uniform])


def _if_feasible(problem: Problem, options: Sequence[Options]) -> Iterator[Solution]:
    try:
        yield _chosen(problem, options)
    except InfeasibleBudget:  # one width alone may be too wide for what must stay
        return


def _alternation(problem: Problem, bits: list[int]) -> Iterator[Solution]:
    """Prune with the widths, choose widths for the counts, and so on (Yang et al., CVPR 2020)."""
    for number in range(_ALTERNATIONS):
        try:
            masks = project_sparsity(
                list(problem.weights), bits, problem.budget, least=problem.least
            )
        except InfeasibleBudget:
            return
        if number == 0:
            yield realise(problem, bits, masks)
        kept = [w.detach()[m] for w, m in zip(problem.weights, masks, strict=True)]
        costs = [
            codebook_costs(values, kind=problem.kind, bits=widths)
            for values, widths in zip(kept, problem.widths, strict=True)
        ]
        counts = torch.tensor([values.numel() for values in kept])
        before, bits = bits, allocate_bits(torch.stack(costs), counts, problem.budget).bits
        yield realise(problem, bits, masks)
        if bits == before:
            return
