"""Better neighbours of keep-states, where the change of the energy for each flip is known.

A population of a few states is a weak search over thousands of nodes; a step to the best
neighbours after each generation makes it a memetic one. An Ising energy knows its changes exactly;
a task loss to first order, from one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_numbers, checked_population

# Changes that are smaller than this share of the largest one are rounding.
_ROUNDING = 1e-12


def flip_changes(population: Tensor, slopes: Tensor) -> Tensor:
    """What flipping each node changes, to first order: float64 `(states, nodes)`.

    A node that stays loses its gate, `-slope`; one that is gone gains it, `+slope`.

    Args:
        population: bool `(states, nodes)`.
        slopes: Derivative of the energy by the gates, `(nodes,)` or `(states, nodes)`.

    Raises:
        ArgumentError: The shapes do not fit.
    """
    rows = checked_population(population)
    return (1 - 2 * rows.double()) * _by_state(slopes, rows, "slopes")


def best_flips(
    population: Tensor, changes: Tensor, count: int, *, layout: Layout | None = None
) -> Tensor:
    """Apply to every state the moves that lower its energy most: bool `(states, nodes)`.

    Only moves with a negative change are applied. Without a layout a move flips one node, and the
    result may need repair. With one it is a swap: of each group, the best node to drop goes
    with the best one to add, the next best one with the next: no count changes, and no cost that
    depends on counts alone. The change of a swap is taken to be the sum of its two.

    Args:
        population: bool `(states, nodes)`; it is not changed.
        changes: Of the energy for every flip, `(states, nodes)`, or `(nodes,)` for all states.
        count: Moves of each state at most.
        layout: The groups inside which nodes are swapped.

    Raises:
        ArgumentError: Shapes do not fit, a change is not finite, or the count is negative.
    """
    rows = checked_population(population, None if layout is None else layout.nodes)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ArgumentError(f"{count!r} is no whole number from 0", where="count")
    known = _finite(_by_state(changes, rows, "changes"))
    gains, nodes = _flips(known) if layout is None else _swaps(rows, known, layout, count)
    order = gains.argsort(dim=1, stable=True)[:, :count]
    chosen = gains.gather(1, order) < 0
    moved = nodes.gather(1, order[..., None].expand(-1, -1, nodes.shape[2]))
    taken = chosen[..., None].expand_as(moved).flatten(1)
    flipped = torch.zeros(rows.shape, dtype=torch.int64)
    return rows ^ flipped.scatter_add(1, moved.flatten(1), taken.long()).bool()


def _flips(changes: Tensor) -> tuple[Tensor, Tensor]:
    """The change of every move, `(states, moves)`, and the nodes it flips, `(states, moves, 1)`."""
    nodes = torch.arange(changes.shape[1]).expand(changes.shape)
    return changes, nodes[..., None]


def _swaps(rows: Tensor, changes: Tensor, layout: Layout, count: int) -> tuple[Tensor, Tensor]:
    """The same for swaps inside groups, of two nodes each; infinite where there is no pair."""
    gains = [changes.new_zeros(rows.shape[0], 0)]
    nodes = [torch.zeros(rows.shape[0], 0, 2, dtype=torch.int64)]
    for part in layout.parts.values():
        kept, own = rows[:, part], changes[:, part]
        dropped, drops = own.masked_fill(~kept, torch.inf).sort(dim=1, stable=True)
        added, adds = own.masked_fill(kept, torch.inf).sort(dim=1, stable=True)
        gains.append((dropped + added)[:, :count])
        nodes.append(torch.stack([drops, adds], dim=2)[:, :count] + part.start)
    return torch.cat(gains, dim=1), torch.cat(nodes, dim=1)


def descend(
    changes: Callable[[Tensor], Tensor],
    row: Tensor,
    *,
    layout: Layout | None = None,
    moves: int | None = None,
) -> Tensor:
    """Go downhill until no single move lowers the energy: bool `(nodes,)`.

    Without a layout each move is the best flip of all. With one it is a swap inside a group, by
    its exact change: the nodes that stay are tried in the order of what dropping them changes, each
    with the best node to add once it is gone, and the first swap that lowers the energy is taken.
    At the end, then, no swap inside a group lowers it.

    Args:
        changes: Exact changes of the energy for every flip of a row: `(nodes,)` to `(nodes,)`.
        row: Where to start, bool `(nodes,)`; it is not changed.
        layout: The groups inside which nodes are swapped.
        moves: How many at most; `None` is until the end.

    Raises:
        ArgumentError: The row is malformed, or a change is not finite or not that of any energy.
    """
    state = checked_population(row[None], None if layout is None else layout.nodes)[0].clone()
    seen: set[bytes] = set()
    while moves is None or len(seen) < moves:
        move = _best_flip(changes, state) if layout is None else _swap(changes, state, layout)
        if not move:
            break
        seen.add(state.numpy().tobytes())
        state[list(move)] ^= True
        if state.numpy().tobytes() in seen:
            raise ArgumentError(
                "went downhill, and came back to where it was",
                where="descent",
                remedy="Give exact changes of one energy; for others there is best_flips.",
            )
    return state


def _best_flip(changes: Callable[[Tensor], Tensor], state: Tensor) -> tuple[int, ...]:
    known = _of_row(changes, state)
    if not known.numel():
        return ()
    best = int(known.argmin())
    return (best,) if float(known[best]) < -_smallest(known) else ()


def _swap(changes: Callable[[Tensor], Tensor], state: Tensor, layout: Layout) -> tuple[int, ...]:
    known = _of_row(changes, state)
    parts = [part for part in layout.parts.values() for _ in range(part.stop - part.start)]
    for drop in known.argsort(stable=True).tolist():
        part = parts[drop]
        gone = ~state[part]
        if not state[drop] or not bool(gone.any()):
            continue
        after = state.clone()
        after[drop] = False
        adding = _of_row(changes, after)[part].masked_fill(~gone, torch.inf)
        add = int(adding.argmin())
        if float(known[drop] + adding[add]) < -_smallest(known):
            return drop, part.start + add
    return ()


def _smallest(changes: Tensor) -> float:
    return _ROUNDING * float(changes.abs().max())


def _of_row(changes: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    return _finite(checked_numbers(changes(state), (state.numel(),), "changes"))


def _by_state(numbers: Tensor, rows: Tensor, where: str) -> Tensor:
    shape = (rows.shape[0], rows.shape[1])
    whole = numbers.expand(shape) if numbers.shape == shape[1:] else numbers
    return checked_numbers(whole, shape, where)


def _finite(changes: Tensor) -> Tensor:
    if not bool(torch.isfinite(changes).all()):
        raise ArgumentError("are not finite", where="changes of the energy")
    return changes
