"""Make keep-states feasible: the lowest score goes, and what still fits returns.

The budget as a constraint of the search, where the papers have none: H. Salehinejad and S. Valaee,
"EDropout" (IEEE TNNLS 2022). Each state takes the `Search` of `passes.structure.select.repair`,
exact for any cost and several limits. To keep the states apart, what goes can be sampled. Scores
have a mean of 1 in each group, so that groups lose alike where nothing else is known; scores per
saving, which are an option, gave worse networks (ResNet-20 at a quarter of its MACs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from energy_model.resolved import ResolvedLimit
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_numbers, checked_population, checked_rate
from passes.structure.costs import StructureCosts
from passes.structure.groups import ChannelGroups
from passes.structure.search import Scores, Search
from passes.structure.select import select_per_layer
from passes.structure.state import State

# Noise is cut at this power of e, so that no score becomes infinite.
_LARGEST_POWER = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class Repair:
    """Makes every state of a population fit a budget.

    Attributes:
        costs: Costs of the keep-states, among them all that are limited.
        groups: The groups; frozen ones keep all, free ones their minimum at least.
        layout: Where their nodes are, `Layout.of(groups)`.
        limits: The budget in absolute terms.
        multiple: Channel counts are to be multiples of this.
        fill: Whether what still fits returns. Under a budget that everything fits, every state
            becomes the one that keeps everything; so a search whose budget is falling does not
            fill.
        per_saving: Whether the lowest score per saving goes, in place of the lowest score.

    Raises:
        ArgumentError: The layout is that of other groups.
    """

    costs: StructureCosts
    groups: ChannelGroups
    layout: Layout
    limits: tuple[ResolvedLimit, ...]
    multiple: int = 1
    fill: bool = True
    per_saving: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", tuple(self.limits))
        if self.layout != Layout.of(self.groups):
            raise ArgumentError(
                "is not that of the groups", where="layout", remedy="Use Layout.of(groups)."
            )

    def under(self, limits: Sequence[ResolvedLimit]) -> Repair:
        """The same for another budget; see `annealed`."""
        return replace(self, limits=tuple(limits))

    def __call__(
        self,
        population: Tensor,
        scores: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """The nearest states that fit, bool `(states, nodes)`; the population is not changed.

        A state that fits, and with which nothing more does (or that is not to be filled), stays as
        it is. With a temperature T what goes next is drawn, with probabilities proportional to
        `price ** (-1 / T)` where the price is the score, or the score per saving (see `sampled`);
        at 0 the lowest price goes.

        Args:
            population: bool `(states, nodes)`.
            scores: How much each node matters, `(nodes,)`, or for each state, `(states, nodes)`.
            generator: On the CPU, for a temperature above 0.
            temperature: T, from 0.

        Raises:
            InfeasibleBudget: The fewest units exceed a limit.
            PreconditionError: The costs of a free group cannot be counted.
            ArgumentError: An argument is malformed, or a score is not finite.
        """
        states, nodes = checked_population(population, self.layout.nodes).shape
        whole = scores.expand(states, nodes) if scores.shape == (nodes,) else scores
        whole = checked_numbers(whole, (states, nodes), "scores")
        if temperature:
            whole = sampled(whole, generator, temperature)
        rows = [self._row(row, own) for row, own in zip(population, whole, strict=True)]
        return torch.stack(rows) if rows else population.clone()

    def _row(self, row: Tensor, scores: Tensor) -> Tensor:
        named = bool(self.layout.names)
        search = self._search(row, self.layout.by_group(scores) if named else {})
        search.drop(per_cost=self.per_saving)
        if self.fill:
            search.fill()
        state = {name: ranking.keep() for name, ranking in search.rankings.items()}
        return self.layout.bits(self.groups, state)

    def _search(self, row: Tensor, scores: Scores) -> Search:
        state = self._state(row)
        return Search(self.costs, self.groups, scores, self.limits, self.multiple, state)

    def _state(self, row: Tensor) -> State:
        return self.layout.state(row) if self.layout.names else {}

    def values(self, population: Tensor) -> dict[str, Tensor]:
        """What each state costs, float64 `(states,)` by key of the costs.

        Raises:
            ArgumentError: The population is malformed, or a state keeps fewer units of a group than
                its minimum.
        """
        rows = checked_population(population, self.layout.nodes)
        found = [self.costs.values(self._state(row)) for row in rows]
        return {
            key: torch.tensor([each[key] for each in found], dtype=torch.float64)
            for key in self.costs.keys
        }

    def violations(self, population: Tensor) -> Tensor:
        """By how much each state does not fit, float64 `(states,)`; 0 where it does.

        The sum over the limits of what is too much, as a share of the limit, and over the groups of
        the units that are missing to a number that is allowed, as a share of the group. Costs are
        counted with these units.

        Raises: As `__call__`, but for the budget.
        """
        rows = checked_population(population, self.layout.nodes)
        found = [self._violation(row) for row in rows]
        return torch.tensor(found, dtype=torch.float64)

    def _violation(self, row: Tensor) -> float:
        search = self._search(row, self._no_scores())
        maxima = {self.costs.index(limit.key): limit.maximum for limit in self.limits}
        over = sum(excess / (maxima[place] or 1) for place, excess in search.exceeded())
        missing = sum(
            (ranking.kept - int(row[self.layout.parts[name]].sum())) / ranking.group.units
            for name, ranking in search.rankings.items()
        )
        return float(over + missing)

    def keep_rates(self) -> Tensor:
        """Shares of the groups that stay if all lose alike, float64 `(groups,)`.

        The largest share with which the budget holds: states that are drawn at this rate are near
        the budget. See `select_per_layer`.

        Raises:
            InfeasibleBudget: The fewest units exceed a limit.
        """
        found = select_per_layer(
            self.costs, self.groups, self._no_scores(), self.limits, multiple=self.multiple
        )
        kept = [found.kept[name] for name in self.layout.names]
        return torch.tensor(kept, dtype=torch.float64) / torch.tensor(self.layout.sizes)

    def _no_scores(self) -> Scores:
        return {group.name: np.zeros(group.units) for group in self.groups.free}


def sampled(scores: Tensor, generator: torch.Generator | None, temperature: float) -> Tensor:
    """Scores times random factors, so that to take the lowest one is to draw from a softmax.

    With G from the standard Gumbel distribution, the node with the lowest `score * exp(-T G)` is
    one that is drawn with a probability proportional to `score ** (-1 / T)`, and so on for the next
    ones without replacement (W. Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019,
    section 2.3). As prices are scores divided by savings, they are drawn as well; and a score of
    any scale is. Negative scores stay negative: with them it is `|score| ** (1 / T)`.

    Args:
        scores: Of any shape.
        generator: On the CPU.
        temperature: T above 0.

    Raises:
        ArgumentError: There is no generator, or the temperature is no finite number from 0.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ArgumentError(f"{temperature!r} is no finite number from 0", where="temperature")
    if generator is None:
        raise ArgumentError(
            "is missing, and the temperature is above 0",
            where="generator",
            remedy="Pass a torch.Generator, or a temperature of 0.",
        )
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(torch.float64).tiny)))
    powers = (-temperature * torch.sign(scores) * gumbel).clamp(-_LARGEST_POWER, _LARGEST_POWER)
    return scores * torch.exp(powers)


def annealed(limits: Sequence[ResolvedLimit], share: float) -> tuple[ResolvedLimit, ...]:
    """The budget at a moment of the search: it falls geometrically from the original to the target.

    Args:
        limits: The target.
        share: How much of the way is done, from 0 to 1.

    Raises:
        ArgumentError: The share is not from 0 to 1.
    """
    if checked_rate(share, "share") >= 1:
        return tuple(limits)
    return tuple(_at(limit, share) for limit in limits)


def _at(limit: ResolvedLimit, share: float) -> ResolvedLimit:
    if not 0 < limit.maximum < limit.base:
        return limit
    value = limit.base * (limit.maximum / limit.base) ** share
    # Counts are whole; what is measured, such as seconds, is not.
    whole = isinstance(limit.base, int) and isinstance(limit.maximum, int)
    return replace(limit, maximum=max(limit.maximum, math.ceil(value) if whole else value))
