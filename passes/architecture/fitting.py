"""Narrow a student until limits hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from energy_model.errors import InfeasibleBudget
from energy_model.resolved import ResolvedLimit
from passes.architecture.genotype import Genotype
from passes.architecture.structure import Structure

Costs = Mapping[str, int | float]

# Steps of the search for the widest factor: finer than one unit of any group.
_HALVINGS = 14


def fitted(
    structure: Structure,
    genotype: Genotype,
    limits: Sequence[ResolvedLimit],
    cost: Callable[[Genotype], Costs],
    canonical: Callable[[Genotype], Genotype],
) -> Genotype:
    """The student with all widths scaled by the largest factor with which the limits hold.

    Where even the smallest widths are too wide, skips go, and then one part after the other, that
    which saves most of what is exceeded first.

    Args:
        structure: The teacher.
        genotype: Canonical; it exceeds a limit.
        limits: All of them.
        cost: Costs of a genotype.
        canonical: Makes a genotype legal, without regard to limits.

    Raises:
        InfeasibleBudget: The smallest student that was found exceeds a limit.
    """

    def excess(found: Genotype) -> float:
        costs = cost(found)
        over = (costs[limit.key] / max(limit.maximum, 1e-12) for limit in limits)
        return max(over)

    start = genotype
    if excess(_scaled(structure, start, 0.0, canonical)) > 1:
        start = canonical(Genotype.of(start.removed, dict(start.widths)))
    while excess(_scaled(structure, start, 0.0, canonical)) > 1:
        smaller = _without_a_part(structure, start, excess, canonical)
        if smaller is None:
            raise _infeasible(_scaled(structure, start, 0.0, canonical), limits, cost)
        start = smaller
    low, high = 0.0, 1.0
    best = _scaled(structure, start, low, canonical)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = _scaled(structure, start, middle, canonical)
        if excess(tried) <= 1:
            low, best = middle, tried
        else:
            high = middle
    return best


def _scaled(
    structure: Structure,
    genotype: Genotype,
    factor: float,
    canonical: Callable[[Genotype], Genotype],
) -> Genotype:
    asked = dict(genotype.widths)
    widths = {
        group.name: max(1, int(asked.get(group.name, group.units) * factor))
        for group in structure.groups
        if not group.frozen
    }
    return canonical(Genotype.of(genotype.removed, widths, genotype.skips))


def _without_a_part(
    structure: Structure,
    genotype: Genotype,
    excess: Callable[[Genotype], float],
    canonical: Callable[[Genotype], Genotype],
) -> Genotype | None:
    """The genotype less the part that saves most at the smallest widths; `None` if none saves."""
    least = excess(_scaled(structure, genotype, 0.0, canonical))
    best: Genotype | None = None
    for name in structure.parts:
        if name in genotype.removed:
            continue
        tried = canonical(Genotype.of([*genotype.removed, name], dict(genotype.widths)))
        found = excess(_scaled(structure, tried, 0.0, canonical))
        if found < least:
            least, best = found, tried
    return best


def _infeasible(
    genotype: Genotype, limits: Sequence[ResolvedLimit], cost: Callable[[Genotype], Costs]
) -> InfeasibleBudget:
    costs = cost(genotype)
    limit = max(limits, key=lambda each: costs[each.key] / max(each.maximum, 1e-12))
    tightest = costs[limit.key]
    return InfeasibleBudget(
        f"{limit.key}<={limit.amount(limit.maximum)} cannot be reached: the smallest student has "
        f"{limit.amount(tightest)}",
        limit=limit.key,
        asked=limit.maximum,
        tightest=tightest,
        remedy="Raise the limit, or let the policy remove more.",
    )
