"""The next drop threshold, from how many cells the last one dropped.

The number of active weights below a threshold H is nearly linear in H for small H, so a controller
finds the H that drops `wanted` cells without looking at any order. Exact selection
(`drop.smallest_of_all`) needs no controller; these are for parity with the authors' method.
"""

from __future__ import annotations

import math
import sys

from energy_model.errors import ArgumentError
from passes.dynamic.selection import whole


def bang_bang(
    threshold: float, found: int, wanted: int, tolerance: float = 0.1, factor: float = 2.0
) -> float:
    """The authors' rule: times or divided by `factor` outside the tolerance (section 3, alg. 1).

    With factor 2 and tolerance 0.1 it comes to rest for about 29 % of the possible `wanted` only
    (log 1.22 / log 2); otherwise it cycles between two thresholds, inside 0.55 and 1.8 times
    `wanted` on the linear model.

    Args:
        threshold: The magnitude below which cells were dropped, positive.
        found: Cells that it dropped.
        wanted: Cells that it should drop.
        tolerance: Share of `wanted` by which `found` may differ.
        factor: Above 1.

    Returns:
        The threshold of the next event, always positive and finite.

    Raises:
        ArgumentError: A number is out of range.
    """
    _check(threshold, found, wanted, tolerance)
    if not 1 < factor < math.inf:
        raise ArgumentError(f"{factor} is not allowed", where="factor", remedy="Give one above 1.")
    if found < (1 - tolerance) * wanted:
        return _bounded(threshold * factor)
    if found > (1 + tolerance) * wanted:
        return _bounded(threshold / factor)
    return threshold


def proportional(threshold: float, found: int, wanted: int, tolerance: float = 0.02) -> float:
    """Times `wanted / found`, at least a half and at most 2, outside the tolerance.

    Far away it doubles and halves as `bang_bang` does; near the goal it converges instead of
    cycling.

    Args:
        threshold: The magnitude below which cells were dropped, positive.
        found: Cells that it dropped.
        wanted: Cells that it should drop.
        tolerance: Share of `wanted` by which `found` may differ.

    Returns:
        The threshold of the next event, always positive and finite.

    Raises:
        ArgumentError: A number is out of range.
    """
    _check(threshold, found, wanted, tolerance)
    if abs(found - wanted) <= tolerance * wanted:
        return threshold
    ratio = wanted / found if found else 2.0
    return _bounded(threshold * min(max(ratio, 0.5), 2.0))


def _bounded(threshold: float) -> float:
    """Neither 0 nor infinite, from where no factor leads back.

    Cells that stay exactly 0 lie below every threshold and can drive it down without end.
    """
    return min(max(threshold, sys.float_info.min), sys.float_info.max)


def _check(threshold: float, found: int, wanted: int, tolerance: float) -> None:
    whole(found, "found")
    whole(wanted, "wanted")
    if not 0 < threshold < math.inf:
        raise ArgumentError(
            f"{threshold} is not allowed", where="threshold", remedy="Give a positive number."
        )
    if not 0 <= tolerance < 1:
        raise ArgumentError(
            f"{tolerance} is not allowed", where="tolerance", remedy="Give a share from 0 below 1."
        )
