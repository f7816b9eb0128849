"""How many cells each site grows: exact shares of a whole number.

Shares are proportional to weights, never above a cap, and add up to the unit. All arithmetic is in
whole numbers and fractions: no rounding of a float decides who gets a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from energy_model.errors import ArgumentError
from passes.dynamic.selection import same_length, whole


def shares(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Split a whole number in proportion to weights, under caps.

    Water-filling: shares in proportion; sites that reach their cap are frozen there and the rest is
    shared again. Then every share is rounded down, and what is left goes one each to the largest
    remainders, ties to the first site.

    Args:
        total: What is to be split.
        weights: Per site, not negative; where all that have room weigh 0, they share equally.
        caps: Per site, the most that it can take.

    Returns:
        Per site, a number from 0 to its cap; their sum is `min(total, sum(caps))`.

    Raises:
        ArgumentError: Lengths differ, or a number is negative, NaN or infinite.
    """
    same_length(weights=weights, caps=caps)
    limits = [whole(c, "caps") for c in caps]
    ideal = _ideal(min(whole(total, "total"), sum(limits)), _integers(weights), limits)
    result = [math.floor(share) for share in ideal]
    missing = sum(ideal, Fraction(0)) - sum(result)
    # A share with a remainder is below its cap, and there are more remainders than missing units.
    by_remainder = sorted(range(len(ideal)), key=lambda i: (result[i] - ideal[i], i))
    for site in by_remainder[: int(missing)]:
        result[site] += 1
    return result


def survivors(
    kept: Sequence[int],
    dropped: Sequence[int],
    damping: float = 1.0,
    costs: Sequence[float] | None = None,
    gamma: float = 0.0,
) -> list[float]:
    """Weights by which what was dropped is given back to the sites, for `shares`.

    Mostafa & Wang, ICML 2019: in proportion to what survived the drop, `R`. With damping and costs

        weight = (1 - damping) * K + damping * r * sum(K) / sum(r)
        r      = R * (cost_ref / cost)^gamma

    and both times a constant, which shares do not see.

    Args:
        kept: `R`, per site, what stayed active; cells, or parameters where blocks differ.
        dropped: `K`, per site, what was dropped, in the same unit.
        damping: From 0 (every site regrows what it lost, as SET) to 1 (the paper).
        costs: Per site, the cost of one cell or parameter in any one unit, positive; e.g. energy.
        gamma: How much costs count, from 0 (not at all, the paper).

    Returns:
        Per site, a finite weight that is not negative.

    Raises:
        ArgumentError: Lengths differ, or a number is out of range.
    """
    same_length(kept=kept, dropped=dropped, costs=costs)
    stays = [float(whole(r, "kept")) for r in kept]
    lost = [float(whole(k, "dropped")) for k in dropped]
    if not 0 <= damping <= 1:
        raise ArgumentError(
            f"{damping} is not allowed", where="damping", remedy="Give a share from 0 to 1."
        )
    if costs is not None:
        stays = [r * f for r, f in zip(stays, _thrift(costs, gamma), strict=True)]
    # Times sum(r): exact, and defined, when nothing survived or nothing was dropped.
    if damping == 1 or not any(lost):
        return stays
    if damping == 0 or not any(stays):
        return lost
    survived, total = math.fsum(stays), math.fsum(lost)
    return [
        (1 - damping) * k * survived + damping * r * total for k, r in zip(lost, stays, strict=True)
    ]


def block_shares(
    total_parameters: int,
    weights: Sequence[float],
    caps: Sequence[int],
    blocks: Sequence[int],
    carried: int = 0,
) -> tuple[list[int], int]:
    """Split parameters among sites whose cells have several parameters each.

    The shares of `total_parameters + carried` are found in parameters. Sites are then served from
    the largest block to the smallest: those of one block share the whole cells of their parameters,
    and what is less than a cell passes on to the next smaller block (or buys one more cell, where
    the smaller ones are full). Never more is given than there is; what nobody can take is carried
    to the next event.

    Args:
        total_parameters: What this event has to place.
        weights: Per site, as in `shares`; parameters, not cells, are in proportion to them.
        caps: Per site, the most *cells* that it can take.
        blocks: Per site, parameters in a cell.
        carried: The ledger: what earlier events left to place, in parameters.

    Returns:
        Cells per site, and the new ledger: `sum(cells * blocks) + ledger` is exactly
        `total_parameters + carried`. It is less than the block of every site that has room left,
        so 0 when one of block 1 has. It is more than a block only when all sites are full: place
        the rest by a second call with `total_parameters` 0 among the cells just dropped. A negative
        ledger, which this function never makes out of others, is first paid back.

    Raises:
        ArgumentError: Lengths differ, or a number is out of range.
    """
    same_length(weights=weights, caps=caps, blocks=blocks)
    left = whole(total_parameters, "total_parameters") + carried
    limits = [whole(c, "caps") for c in caps]
    sizes = [whole(b, "blocks", 1) for b in blocks]
    counts = [0] * len(limits)
    if left <= 0:
        return counts, left
    in_parameters = [c * b for c, b in zip(limits, sizes, strict=True)]
    ideal = _ideal(min(left, sum(in_parameters)), _integers(weights), in_parameters)
    due, descending = Fraction(0), sorted(set(sizes), reverse=True)
    for block in descending:
        own = sum((s for s, b in zip(ideal, sizes, strict=True) if b == block), Fraction(0))
        if not own:
            continue  # no weight, or no room: what larger blocks left is not for these
        due += own
        # Rounded down, unless the smaller cells cannot take what that leaves.
        smaller = sum(p for p, b in zip(in_parameters, sizes, strict=True) if b < block)
        cells = max(0, math.floor(due / block), min(left, left - smaller + block - 1) // block)
        given = _serve(cells, weights, limits, sizes, block, counts)
        due -= given
        left -= given
    for block in descending:  # where smaller blocks were full, a larger one may have room
        left -= _serve(left // block, weights, limits, sizes, block, counts)
    return counts, left


def _serve(
    cells: int,
    weights: Sequence[float],
    caps: list[int],
    sizes: list[int],
    block: int,
    counts: list[int],
) -> int:
    """Add cells to the counts of the sites of one block size; return their parameters."""
    sites = [i for i, b in enumerate(sizes) if b == block]
    room = [caps[i] - counts[i] for i in sites]
    added = shares(cells, [weights[i] for i in sites], room)
    for site, count in zip(sites, added, strict=True):
        counts[site] += count
    return sum(added) * block


def _ideal(total: int, weights: list[int], caps: list[int]) -> list[Fraction]:
    """Real shares by water-filling; `total` is at most the sum of the caps."""
    ideal = [Fraction(0)] * len(caps)
    open_ = [i for i, cap in enumerate(caps) if cap]
    while open_ and total:
        mass = sum(weights[i] for i in open_)
        pull = {i: weights[i] if mass else 1 for i in open_}
        mass = mass or len(open_)
        full = {i for i in open_ if total * pull[i] >= caps[i] * mass}
        if not full:
            for i in open_:
                ideal[i] = Fraction(total * pull[i], mass)
            break
        for i in full:
            ideal[i] = Fraction(caps[i])
            total -= caps[i]
        open_ = [i for i in open_ if i not in full]
    return ideal


def _integers(weights: Sequence[float]) -> list[int]:
    """The weights, times one constant that makes them whole: exact, since floats are fractions."""
    if not all(0 <= w < math.inf for w in weights):
        raise ArgumentError(
            f"{[w for w in weights if not 0 <= w < math.inf]} are not allowed",
            where="weights",
            remedy="Give finite numbers that are not negative.",
        )
    ratios = [w.as_integer_ratio() for w in weights]
    common = math.lcm(*(denominator for _, denominator in ratios))
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def _thrift(costs: Sequence[float], gamma: float) -> list[float]:
    """`(cost_ref / cost)^gamma`, with the least cost as reference: at most 1, never overflowing."""
    if not (0 <= gamma < math.inf and all(0 < c < math.inf for c in costs)):
        raise ArgumentError(
            f"Costs {list(costs)} with gamma {gamma} are not allowed",
            where="costs",
            remedy="Give positive costs, and a gamma from 0.",
        )
    reference = min(costs, default=1.0)
    return [float((reference / c) ** gamma) for c in costs]
