"""What weights cost in energy at given bits, and which of them an energy budget keeps.

A weight's price is the energy that its presence costs at its width (Yang, Zhu, Liu, "Energy-
Constrained Compression for Deep Neural Networks via Weighted Sparse Projection and Layer Input
Masking", ICLR 2019), so that narrow layers keep more weights. Only uniform grids have narrow
weights: what is looked up in a codebook is multiplied as a whole word.

Budgets are counted in 1/256 of the hardware's unit of energy, where all prices are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import InfeasibleBudget
from energy_model.hardware import Hardware
from energy_model.unit_prices import PARTS
from passes.graph import Site
from passes.joint.choice import Group, choose
from passes.joint.codebook import WIDTHS
from passes.joint.fit import codebook_costs
from passes.joint.points import Places
from passes.methods.joint.rates import Layer
from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.projection.ladder import Ladder, build_ladder
from passes.projection.magnitudes import Histogram, histogram, ranked, top_mask


@dataclass(slots=True)
class EnergyRate:
    """Modelled energy of the nonzero weights, by the bits of their layers.

    Attributes:
        sites: The layers, in the order in which weights and bits are given.
        hardware: The accelerator.
        by_price: Choose bits by what the last projection paid for energy; otherwise, and where
            nothing was removed, by the multiple-choice knapsack.
        unrepaired: Share of the quantization error that counts by price.
        nominal: Bits of the nonzero weights that are allowed besides; `None` does not limit them.
        multiplier: Of the last projection: squared error per 1/256 unit of energy; beside nominal
            bits per share of both limits.
        relief: See `Rate`.
    """

    sites: tuple[Site, ...]
    hardware: Hardware
    by_price: bool = True
    unrepaired: float = 1.0
    nominal: int | None = None
    multiplier: float = 0.0
    relief: float = 1.0

    def energy(self, place: int, bits: int, counts: Places | int) -> Places:
        """Energy of numbers of nonzeros of a layer, in 1/256; int64 of the shape of `counts`.

        Args:
            place: Of the layer.
            bits: Of its weights; widths that no codebook has are those of its type.
            counts: Numbers of nonzeros.
        """
        price = charged(self.sites[place], bits).price(self.hardware)
        kept = np.asarray(counts, dtype=np.int64)
        cached = np.minimum(kept, price.capacity)
        first, beyond = int(price.first * PARTS), int(price.beyond * PARTS)
        result: Places = first * cached + beyond * (kept - cached)
        return result

    def project(
        self, weights: list[Tensor], bits: list[int], budget: int, layers: Sequence[Layer]
    ) -> list[Tensor]:
        """The weighted sparse projection, greedily and filled.

        What a layer must keep is kept even where it exceeds the budget at these bits; bits are then
        chosen as narrow as possible.
        """
        counted = [histogram(w, s.name) for w, s in zip(weights, self.sites, strict=True)]
        forced = [min(layer.least, h.nonzeros) for layer, h in zip(layers, counted, strict=True)]
        ladders = [self._ladder(i, b, n) for i, (b, n) in enumerate(zip(bits, forced, strict=True))]
        capacities = self._capacities(budget)
        must = [ladder.used(n) for ladder, n in zip(ladders, forced, strict=True)]
        used = [sum(column) for column in zip(*must, strict=True)]
        if any(u > c for u, c in zip(used, capacities, strict=True)):
            # More than any error can be worth.
            self.multiplier = 1.0 + sum(float(w.detach().double().square().sum()) for w in weights)
            return _largest(weights, forced, counted)
        prefix = allocate(weights, ladders, capacities, histograms=counted)
        self.multiplier = 0.0
        if prefix.next_charges is not None:
            self.multiplier = _paid(weights, counted, ladders, prefix.counts, forced, capacities)
        filled = fill(prefix, weights, ladders, counted)
        return _largest(weights, filled.counts, counted)

    def choose(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        bits: list[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        """Of the nonzeros as they are: by price, or the least error whose energy fits.

        By price, bits stay where all is kept that only the budget of the moment has room for.

        Raises:
            InfeasibleBudget: Not even the narrowest widths fit, and bits are not chosen by price.
        """
        values = [w if self.by_price else t for w, t in zip(weights, targets, strict=True)]
        errors = [_errors(v, layer.widths) for v, layer in zip(values, layers, strict=True)]
        counts = [int(torch.count_nonzero(w)) for w in weights]
        if self.by_price:
            last = int(budget / self.relief)
            if self.multiplier or self.size(weights, bits) > last:
                return self._priced(errors, counts, bits, budget, layers)
            budget = last
        return self._knapsack(errors, counts, budget, layers)

    def size(self, weights: list[Tensor], bits: list[int]) -> int:
        """Energy of weights as they are, in 1/256."""
        counts = [int(torch.count_nonzero(w)) for w in weights]
        each = enumerate(zip(bits, counts, strict=True))
        return sum(int(self.energy(i, b, n)) for i, (b, n) in each)

    def within(self, weights: list[Tensor], bits: list[int], budget: int) -> bool:
        """Whether weights as they are use no more than is allowed, nominal bits included."""
        pairs = zip(weights, bits, strict=True)
        nominal = sum(b * int(torch.count_nonzero(w)) for w, b in pairs)
        allowed = self._capacities(budget)
        used = (self.size(weights, bits), nominal)
        return all(u <= c for u, c in zip(used, allowed, strict=False))

    def _capacities(self, budget: int) -> tuple[int, ...]:
        if self.nominal is None:
            return (budget,)
        return budget, int(self.nominal * self.relief)

    def _charges(self, energy: int, bits: int) -> tuple[int, ...]:
        return (energy,) if self.nominal is None else (energy, bits)

    def _ladder(self, place: int, bits: int, forced: int) -> Ladder:
        site = self.sites[place]
        price = charged(site, bits).price(self.hardware)
        steps = ((price.capacity, price.first), (site.size, price.beyond))
        charges = [(end, self._charges(int(each * PARTS), bits)) for end, each in steps]
        return build_ladder(site.size, charges, forced)

    def _priced(
        self,
        errors: Sequence[dict[int, float]],
        counts: Sequence[int],
        bits: Sequence[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        capacities = self._capacities(budget)
        rows = enumerate(zip(errors, counts, bits, layers, strict=True))
        chosen = []
        for place, (error, count, now, layer) in rows:
            if not count or not self.multiplier:
                chosen.append(layer.widths[0] if len(layer.widths) == 1 else now)
                continue
            price = {
                b: self.unrepaired * error[b]
                + self.multiplier
                * _weighed(self._charges(int(self.energy(place, b, count)), b * count), capacities)
                for b in layer.widths
            }
            chosen.append(min(price, key=lambda b: (price[b], b)))
        return chosen

    def _knapsack(
        self,
        errors: Sequence[dict[int, float]],
        counts: Sequence[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        rows = enumerate(zip(errors, counts, layers, strict=True))
        sizes = [
            np.asarray([int(self.energy(i, b, n)) for b in layer.widths])
            for i, (_, n, layer) in rows
        ]
        tightest = sum(int(size.min()) for size in sizes)
        if tightest > budget:
            raise InfeasibleBudget(
                f"the weights that stay take {tightest / PARTS:,.0f} units of energy at the "
                f"narrowest widths, {budget / PARTS:,.0f} are left for them",
                limit="energy",
                asked=budget / PARTS,
                tightest=tightest / PARTS,
                binding_layer=self.sites[int(np.argmax([s.min() for s in sizes]))].name,
                remedy="Raise the limit, or let weights be removed: mode='both'.",
            )
        groups = [
            Group.of(size, np.asarray([error[b] for b in layer.widths]))
            for size, error, layer in zip(sizes, errors, layers, strict=True)
        ]
        found = choose(groups, budget).options
        return [layer.widths[i] for layer, i in zip(layers, found, strict=True)]


def charged(site: Site, bits: int) -> Site:
    """A site whose weights have so many bits; as it is for widths that no codebook has."""
    if bits not in WIDTHS:
        return site
    uses = tuple(replace(use, widths=replace(use.widths, weights=bits)) for use in site.uses)
    return replace(site, uses=uses)


def _errors(values: Tensor, widths: Sequence[int]) -> dict[int, float]:
    """Squared error of the best grid of each width; none where the type or the width is given."""
    kept = values[values != 0]
    if len(widths) == 1 or not len(kept):
        return dict.fromkeys(widths, 0.0)
    costs = codebook_costs(kept, kind="uniform", reserved_zero=False, bits=widths)
    return {b: float(costs[b - 1]) for b in widths}


def _largest(
    weights: Sequence[Tensor], counts: Sequence[int], counted: Sequence[Histogram]
) -> list[Tensor]:
    return [top_mask(w, n, h) for w, n, h in zip(weights, counts, counted, strict=True)]


def _paid(
    weights: Sequence[Tensor],
    counted: Sequence[Histogram],
    ladders: Sequence[Ladder],
    counts: Sequence[int],
    forced: Sequence[int],
    capacities: Sequence[int],
) -> float:
    """Square per price of the last weight that was kept of its own accord."""
    ratios = []
    for weight, h, ladder, count, must in zip(
        weights, counted, ladders, counts, forced, strict=True
    ):
        if count > must:
            last = float(ranked(weight, h, count - 1, count)[1][0])
            ratios.append(last**2 / _weighed(ladder.charges_at(count - 1), capacities))
    return min(ratios, default=0.0)


def _weighed(charges: Sequence[int], capacities: Sequence[int]) -> float:
    """One charge as it is; of several the sum of their shares of the limits, as in `allocate`."""
    if len(charges) == 1:
        return float(charges[0])
    return sum(c / max(limit, 1) for c, limit in zip(charges, capacities, strict=True))
