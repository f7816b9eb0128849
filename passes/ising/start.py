"""The first population of a search: random states near the budget, and a few good guesses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.evolution import LEAST_STATES
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_rate, checked_rates
from passes.ising.ranked_states import best_of_groups
from passes.ising.repair import Repair


def initial_population(
    repair: Repair,
    states: int,
    scores: Tensor,
    generator: torch.Generator,
    *,
    keep: float | Mapping[str, float] | Tensor,
    warm: Tensor | None = None,
    temperature: float = 0.0,
) -> Tensor:
    """Feasible states to begin with, bool `(states, nodes)`.

    In this order: the warm start, if there is one; the state that keeps everything, if it fits; the
    state that the scores alone would choose; and states of independent random bits. All are
    repaired by the scores, the random ones with a temperature.

    Args:
        repair: The layout and the budget.
        states: How many, 4 or more.
        scores: How much each node matters, `(nodes,)`.
        generator: On the CPU.
        keep: The rate at which nodes stay: one for all, by name of the group, `(groups,)` or
            `(nodes,)`; `Repair.keep_rates` is near the budget. H. Salehinejad and S. Valaee,
            "EDropout" (IEEE TNNLS 2022), start at 0.5.
        warm: A state to begin with, bool `(nodes,)`, such as the lowest one of another energy.
        temperature: Of the repair of the random states; see `Repair`.

    Raises:
        InfeasibleBudget: The fewest units exceed a limit.
        ArgumentError: An argument is malformed.
    """
    if isinstance(states, bool) or not isinstance(states, int) or states < LEAST_STATES:
        raise ArgumentError(f"{states!r} is no whole number from {LEAST_STATES}", where="states")
    layout, rates = repair.layout, keep_rates(keep, repair.layout)
    everything = torch.ones(1, layout.nodes, dtype=torch.bool)
    if not layout.nodes:
        return repair(everything, scores).expand(states, 0)
    guesses = [] if warm is None else [repair(_one_row(warm, layout), scores)]
    ranked = repair(everything, scores)
    if torch.equal(ranked, everything):  # It fits: what the scores would choose is at the rates.
        guesses.append(everything)
        ranked = repair(_best_at(rates, scores, layout), scores)
    guesses.append(ranked)
    count = states - len(guesses)
    bits = torch.rand(count, layout.nodes, generator=generator, dtype=torch.float64) < rates
    return torch.cat([*guesses, repair(bits, scores, generator, temperature)])


def _best_at(rates: Tensor, scores: Tensor, layout: Layout) -> Tensor:
    """The best nodes of each group at its mean rate, bool `(1, nodes)`."""
    means = [float(rates[part].sum()) for part in layout.parts.values()]
    return best_of_groups(torch.tensor([means]).round().long(), scores, layout)


def _one_row(row: Tensor, layout: Layout) -> Tensor:
    layout.state(row)
    return row[None]


def keep_rates(keep: float | Mapping[str, float] | Tensor, layout: Layout) -> Tensor:
    """The rate at which each node stays, float64 `(nodes,)`.

    Args:
        keep: One for all, by name of the group (those that are not named keep all), `(groups,)` or
            `(nodes,)`.
        layout: The groups.

    Raises:
        ArgumentError: A rate is not from 0 to 1, a group is not known, or the shape does not fit.
    """
    if isinstance(keep, Mapping):
        unknown = sorted(set(keep) - set(layout.names))
        if unknown:
            raise ArgumentError(
                f"there is no free channel group {unknown[0]!r}",
                where="keep",
                remedy=f"They are {', '.join(layout.names)}.",
            )
        named = [checked_rate(keep.get(name, 1.0), f"keep of {name!r}") for name in layout.names]
        keep = torch.tensor(named, dtype=torch.float64)
    if isinstance(keep, Tensor) and tuple(keep.shape) == (len(layout.names),):
        rates = checked_rates(keep, len(layout.names), "keep")
        return rates.repeat_interleave(torch.tensor(layout.sizes, dtype=torch.int64))
    return checked_rates(keep, layout.nodes, "keep").expand(layout.nodes)
