"""Moves active connections at random and finds those that have crossed zero; see `deep_r`.

Everything is done on one list of the active cells of all sites, so that a step costs O(active) and
few operations, whatever the size and the number of the tensors. A random number is a function of
the seed, the step, the site and the cell: the order of the list does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.by_index import set_at, values_at
from passes.dynamic.deep_r import noise_size, noisy_gradient, normal_pairs_at, signs_at, walked
from passes.dynamic.member import Member
from passes.dynamic.random_keys import key_of
from passes.dynamic.rule import Rule
from passes.dynamic.schedule import Clock, Piecewise
from passes.dynamic.start_masks import START_EVENT
from passes.graph import ModelGraph, Site
from passes.rewrite.masks import Mask, masks_of
from passes.rewrite.optimizer_state import part_of


@dataclass(slots=True, eq=False)
class Part:
    """What one site has of the list.

    Attributes:
        site: The site.
        parameter: That holds it.
        masks: On the parameter, one for each of its owners.
        sign_key: Of the stream of its fixed signs.
        base: Place of its cell 0 in the stream of noise.
        start: Its first place in the list.
        stop: The first place of the next part.
        weight: Of the site, detached, of any shape; as `renew` has found it.
        keeps: Of the masks, likewise.
    """

    site: Site
    parameter: Tensor
    masks: list[Mask]
    sign_key: int
    base: int
    start: int = 0
    stop: int = 0
    weight: Tensor = field(init=False)
    keeps: list[Tensor] = field(init=False)

    def renew(self) -> None:
        """Find the tensors, which whoever moves a model puts elsewhere."""
        self.weight = part_of(self.parameter.detach(), self.site)
        self.keeps = [part_of(mask.keep, self.site) for mask in self.masks]

    def of(self, values: Tensor) -> Tensor:
        """Its stretch of a list."""
        return values[self.start : self.stop]


class Walker:
    """The walk of the active connections of some sites.

    It follows the masks, and changes active weights and their gradients only.

    Args:
        graph: The traced model; it has masks on the sites when the walk begins.
        members: The sparse tensors; those that are not rewired do not walk.
        rule: Has a walk, and a schedule that says when it stops.
        clock: How long training is.
        seed: Of the run.

    Attributes:
        parts: Of the sites, in the order of the list.
        cells: Active cells of one site after another, int64 of shape `(active,)`.
        signs: Of their weights, -1 or 1; 0 where there is none yet.

    Raises:
        ArgumentError: The cells of a site are not single weights.
    """

    def __init__(
        self,
        graph: ModelGraph,
        members: Sequence[Member],
        rule: Rule,
        clock: Clock,
        seed: int,
    ) -> None:
        moving = [m for m in members if m.movable]
        if any(m.shape.block != 1 for m in moving):
            raise ArgumentError(
                "cells of several weights have no sign",
                where=f"rule {rule.name!r}",
                remedy="Rewire single weights: granularity='weights'.",
            )
        assert rule.walk is not None and rule.schedule is not None  # a walk has a schedule
        self.graph, self.sites = graph, [m.site for m in moving]
        self.walk, self.stop = rule.walk, rule.schedule.stop_step(clock)
        self.clock, self.seed = clock, seed
        self._temperatures = Piecewise(rule.walk.temperature)
        self.parts: list[Part] = []
        self.cells = self.signs = self._bases = torch.empty(0)
        self._later: tuple[int, Tensor] | None = None

    @property
    def fixed(self) -> bool:
        """Whether signs are drawn once."""
        return self.walk.signs == "fixed"

    def begin(self) -> None:
        """Give active weights their signs: fixed ones to the weights, otherwise the weights'."""
        self.follow()
        for part in self.parts:
            if self.fixed:
                sizes = values_at(part.weight, part.of(self.cells)).abs()
                set_at(part.weight, part.of(self.cells), part.of(self.signs) * sizes)

    def follow(self) -> None:
        """Make the list anew from the masks; signs of first updates are those of the weights."""
        self.parts, cells, signs, start, self._later = [], [], [], 0, None
        for site in self.sites:
            part = Part(
                site,
                self.graph.parameter(site),
                masks_of(self.graph, site),
                key_of(self.seed, START_EVENT, f"{site.name}/signs"),
                key_of(self.seed, START_EVENT, f"{site.name}/noise"),
            )
            part.renew()
            found = torch.nonzero(part.keeps[0].reshape(-1)).flatten()
            part.start, part.stop = start, start + found.numel()
            start = part.stop
            self.parts.append(part)
            cells.append(found)
            drawn = signs_at(part.sign_key, found).to(part.weight) if self.fixed else None
            signs.append(values_at(part.weight, found).sign() if drawn is None else drawn)
        if cells:
            self.cells, self.signs = torch.cat(cells), torch.cat(signs)
            parts = zip(cells, self.parts, strict=True)
            self._bases = torch.cat([torch.full_like(c, part.base) for c, part in parts])

    def disturb(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Add noise and penalty to the gradients, before the optimizer's step."""
        if self.walk.noise != "gradient" or step >= self.stop:
            return
        # Mixed precision scales the loss, and divides the gradients by it later.
        scaler = getattr(optimizer, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        extra, temperature = self.walk.l1 * self.values().sign(), self._temperature(step)
        for stretch, eta, nu in self._noise(step, temperature, optimizer):
            extra[stretch] = noisy_gradient(
                extra[stretch], eta=eta, temperature=temperature, normals=nu
            )
        for part in self.parts:
            if part.parameter.grad is not None:
                gradient, cells = part_of(part.parameter.grad, part.site), part.of(self.cells)
                change = scale * part.of(extra).to(gradient)
                set_at(gradient, cells, values_at(gradient, cells) + change)

    def move(self, step: int, optimizer: torch.optim.Optimizer) -> Tensor:
        """Shrink and disturb the weights, after the optimizer's step.

        Returns:
            All active weights afterwards, as `cells`.
        """
        values, l1 = self.values(), self.walk.l1
        if self.walk.noise != "weights" or step >= self.stop:
            return values
        temperature = self._temperature(step)
        for stretch, eta, nu in self._noise(step, temperature, optimizer):
            values[stretch] = walked(
                values[stretch],
                self.signs[stretch],
                eta=eta,
                l1=l1,
                temperature=temperature,
                normals=nu,
            )
        if temperature or l1:
            for part in self.parts:
                set_at(part.weight, part.of(self.cells), part.of(values).to(part.weight))
        return values

    def _noise(
        self, step: int, temperature: float, optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[slice, float, Tensor]]:
        """Stretches of the list with one eta each, and their normal numbers.

        What the optimizer does not train is in none.
        """
        groups, own = optimizer.param_groups, self.walk.eta
        rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}

        def eta(part: Part) -> float | None:
            rate = rates.get(id(part.parameter))
            return rate if rate is None or own is None else own

        normals, nothing = None, torch.zeros((), device=self.cells.device)
        for found, run in groupby(self.parts, eta):
            parts = list(run)
            if found is None:
                continue
            stretch = slice(parts[0].start, parts[-1].stop)
            if noise_size(found, temperature) and normals is None:
                normals = self._normals(step)
            yield stretch, found, nothing if normals is None else normals[stretch]

    def _temperature(self, step: int) -> float:
        return self._temperatures.at(step // self.clock.epoch_steps)

    def _normals(self, step: int) -> Tensor:
        """Of all active cells; two steps share the work of drawing."""
        number, second = divmod(step, 2)
        kept, self._later = self._later, None
        if second and kept is not None and kept[0] == number:
            return kept[1]
        first, later = self._pairs(number, self.cells + self._bases)
        if second:
            return later
        self._later = number, later
        return first

    def _pairs(self, number: int, places: Tensor) -> tuple[Tensor, Tensor]:
        # Sites have stretches of one stream, too far apart to meet among 2^64 numbers.
        return normal_pairs_at(key_of(self.seed, number, "noise"), places)

    def values(self) -> Tensor:
        """All active weights, as `cells`."""
        for part in self.parts:
            part.renew()
        found = [values_at(part.weight, part.of(self.cells)) for part in self.parts]
        return torch.cat(found) if found else torch.empty(0)

    def crossed(self, values: Tensor) -> Tensor:
        """Places in the list of connections with the wrong sign, ascending; NaN is among them.

        Args:
            values: All active weights, as `cells`.
        """
        return torch.nonzero(~(values * self.signs >= 0)).flatten()

    def replace(self, places: Tensor, grown: Tensor, signs: Tensor) -> None:
        """Put as many grown cells of the same sites in some places of the list."""
        self.cells.scatter_(0, places, grown)
        self.signs.scatter_(0, places, signs)
        if self._later is not None:
            number, later = self._later
            bases = self._bases.index_select(0, places)
            later.scatter_(0, places, self._pairs(number, grown + bases)[1])

    def settle(self, values: Tensor) -> None:
        """New connections take the sign of the update that they have got, where it is not drawn.

        Args:
            values: All active weights, as `cells`; after `crossed` has looked at them.
        """
        if not self.fixed:
            self.signs = values.sign()

    def signs_of(self, name: str) -> Tensor:
        """Signs of the active cells, int8 of shape `(cells,)`, -1 or 1; 0 where there is none."""
        part = next(part for part in self.parts if part.site.name == name)
        signs = part.of(self.signs).to(torch.int8)
        return signs.new_zeros(part.site.size).scatter_(0, part.of(self.cells), signs)

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from masks and seed: the signs of first updates, by site."""
        names = [] if self.fixed else [part.site.name for part in self.parts]
        return {name: self.signs_of(name).cpu() for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`, after masks and weights have been loaded."""
        self.follow()
        if not self.fixed:
            for part in self.parts:
                signs = state[part.site.name].to(self.signs)
                part.of(self.signs).copy_(signs[part.of(self.cells)])
