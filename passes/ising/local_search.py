"""Better neighbours of keep-states by swaps, where the change for each flip is known or estimated.

A population of a few states is a weak search over thousands of nodes; a step to the best
neighbours after each generation makes it a memetic one. A task loss knows its changes to first
order, from one backward pass; for those of an Ising energy, which are exact, see `swaps`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_numbers, checked_population


def best_swaps(population: Tensor, changes: Tensor, count: int, layout: Layout) -> Tensor:
    """Apply to every state the swaps that lower its energy most: bool `(states, nodes)`.

    Of each group, the best node to drop goes with the best one to add, the next best one with the
    next: no count changes, and no cost that depends on counts alone. The change of a swap is taken
    to be the sum of its two; only swaps with a negative change are applied.

    Args:
        population: bool `(states, nodes)`; it is not changed.
        changes: Of the energy for every flip, `(states, nodes)`, or `(nodes,)` for all states.
        count: Swaps of each state at most.
        layout: The groups inside which nodes are swapped.

    Raises:
        ArgumentError: Shapes do not fit, a change is not finite, or the count is negative.
    """
    rows = checked_population(population, layout.nodes)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ArgumentError(f"{count!r} is no whole number from 0", where="count")
    known = _finite(_by_state(changes, rows, "changes"))
    gains, nodes = _swaps(rows, known, layout, count)
    order = gains.argsort(dim=1, stable=True)[:, :count]
    chosen = gains.gather(1, order) < 0
    moved = nodes.gather(1, order[..., None].expand(-1, -1, 2))
    taken = chosen[..., None].expand_as(moved).flatten(1)
    flipped = torch.zeros(rows.shape, dtype=torch.int64)
    return rows ^ flipped.scatter_add(1, moved.flatten(1), taken.long()).bool()


def _swaps(rows: Tensor, changes: Tensor, layout: Layout, count: int) -> tuple[Tensor, Tensor]:
    """The change of every swap, `(states, swaps)`, and its nodes, `(states, swaps, 2)`.

    Infinite where there is no pair.
    """
    gains = [changes.new_zeros(rows.shape[0], 0)]
    nodes = [torch.zeros(rows.shape[0], 0, 2, dtype=torch.int64)]
    for part in layout.parts.values():
        kept, own = rows[:, part], changes[:, part]
        dropped, drops = own.masked_fill(~kept, torch.inf).sort(dim=1, stable=True)
        added, adds = own.masked_fill(kept, torch.inf).sort(dim=1, stable=True)
        gains.append((dropped + added)[:, :count])
        nodes.append(torch.stack([drops, adds], dim=2)[:, :count] + part.start)
    return torch.cat(gains, dim=1), torch.cat(nodes, dim=1)


def _by_state(numbers: Tensor, rows: Tensor, where: str) -> Tensor:
    shape = (rows.shape[0], rows.shape[1])
    whole = numbers.expand(shape) if numbers.shape == shape[1:] else numbers
    return checked_numbers(whole, shape, where)


def _finite(changes: Tensor) -> Tensor:
    if not bool(torch.isfinite(changes).all()):
        raise ArgumentError("are not finite", where="changes of the energy")
    return changes
