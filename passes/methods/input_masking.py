"""Layer input masking: the masks of an energy projection, their training and their projection.

H. Yang, Y. Zhu, J. Liu, ICLR 2019, section on layer input masking. While masks are trained the
weights rest, and the other way round. A smaller activation energy leaves more of the budget to
weights.

Changed against the authors' code: the projection weighs what an input costs, and what it costs to
compute a channel of which nothing is left; entries are ranked by the gradients that they receive
rather than by their values, which Adam moves all alike; the share falls gradually instead of at
once; inputs that meet no weight are masked for nothing; and rounding that would raise the energy
(strips of rows can pack worse) is undone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import PreconditionError
from energy_model.hardware import Hardware
from energy_model.input_price import input_prices, inputs_met
from energy_model.unit_prices import PARTS, plain
from passes.graph import Decision, ModelGraph, Site, Use, channel_counts
from passes.methods.masked_energy import channel_price, silence_producers, still_saved
from passes.projection.channels import project_channels
from passes.projection.inputs import project_inputs
from passes.rewrite.input_masks import (
    InputMask,
    attach_input_masks,
    mask_of,
    maskable_inputs,
    update_supports,
)
from passes.rewrite.masked_channels import plan_cuts

_Prices = NDArray[np.int64] | NDArray[np.float64]

_MEMORY = 0.99  # of the running mean of squared gradients, per step


@dataclass
class InputMasking:
    """The masks of a graph, while they are trained.

    Attributes:
        graph: The rewritten graph.
        hardware: What inputs cost.
        masks: Where the masks are.
        weighted: Weigh entries by their energy; otherwise every entry counts as one.
        scored: Rank entries by the squared gradients that they receive; otherwise by their values.
        share: What the masks keep by now, as a share of what all inputs cost.
        still_saved: Energy of activations that removing masked channels will save.
    """

    graph: ModelGraph
    hardware: Hardware
    masks: tuple[InputMask, ...]
    weighted: bool
    scored: bool = True
    share: float = 1.0
    still_saved: int | float = 0
    _prices: list[NDArray[np.int64]] = field(default_factory=list)
    _openings: list[NDArray[np.int64]] = field(default_factory=list)
    _scores: list[Tensor] = field(default_factory=list)

    @classmethod
    def attach(
        cls, graph: ModelGraph, hardware: Hardware, *, weighted: bool, scored: bool
    ) -> InputMasking:
        """Put masks of ones into a graph; see `attach_input_masks`."""
        masks = attach_input_masks(graph)
        made = cls(graph, hardware, masks, weighted, scored)
        prices = [_price(made._uses(mask), hardware) for mask in masks]
        producers = {cut.mask: cut.producer for cut in plan_cuts(graph)}
        openings = [made._opening(mask, producers.get(mask.path)) for mask in masks]
        whole, _ = _integers([*prices, *openings])
        made._prices, made._openings = whole[: len(masks)], whole[len(masks) :]
        made.restart()
        return made

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The buffers of the masks."""
        return tuple(mask_of(self.graph, mask) for mask in self.masks)

    def clamp(self) -> None:
        """Bring every entry into [0, 1]."""
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.clamp_(0.0, 1.0)

    def restart(self) -> None:
        """Forget the gradients seen so far."""
        self._scores = [torch.zeros_like(tensor) for tensor in self.tensors]

    def note_gradients(self) -> None:
        """Average the squared gradients of the entries.

        What removing an entry does to the loss is half its curvature, to second order; the mean
        squared gradient of batches stands for the curvature (LeCun et al., "Optimal brain damage",
        1989, with the empirical Fisher information).
        """
        for tensor, score in zip(self.tensors, self._scores, strict=True):
            if tensor.grad is not None:
                score.mul_(_MEMORY).add_(tensor.grad.detach() ** 2, alpha=1 - _MEMORY)

    def project(self, share: float) -> None:
        """Zero the entries of least value per price until the rest costs a share of all.

        Raises:
            PreconditionError: An entry, or the gradient it received, is not finite.
        """
        if not all(bool(torch.isfinite(t).all()) for t in (*self.tensors, *self._scores)):
            raise PreconditionError(
                "an entry of an input mask, or its gradient, is not finite",
                where="input mask",
                remedy="Lower mask_lr; check the loss and the data.",
            )
        if self.weighted:
            kept = self._project_energy(share)
        else:
            ones = [np.ones_like(price) for price in self._prices]
            kept = list(project_inputs(self._ranked(), ones, _capacity(ones, share)).keep)
        with torch.no_grad():
            for tensor, keep in zip(self.tensors, kept, strict=True):
                back = keep & (tensor == 0)  # only a score ranks what is zero by now
                tensor.masked_fill_(~keep, 0.0).masked_fill_(back, 1.0)

    def _project_energy(self, share: float) -> list[Tensor]:
        values = [t.detach().cpu().double().numpy() ** 2 for t in self._ranked()]
        capacity = _capacity([*self._prices, *self._openings], share)
        kept = project_channels(values, self._prices, self._openings, capacity)
        return [torch.from_numpy(k).to(t.device) for k, t in zip(kept, self.tensors, strict=True)]

    def _ranked(self) -> list[Tensor]:
        """What entries are ranked by, before it is squared."""
        if self.scored and any(bool(score.any()) for score in self._scores):
            return [score.sqrt() for score in self._scores]
        return list(self.tensors)

    def settle(self, share: float, before: Sequence[Tensor]) -> None:
        """Project a last time, round to 0 and 1, and count the energy anew.

        Args:
            share: What may be kept.
            before: The masks, 0 or 1, before they were trained; taken again where the energy would
                be higher.
        """
        trained = [tensor.clone() for tensor in self.tensors]
        self._restore(before)
        energy = self.energy()
        self._set(trained)
        self.clamp()
        self.project(share)
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.copy_((tensor > 0.5).to(tensor.dtype))
        self.refresh()
        if self.energy() > energy:
            self._restore(before)
            why = "the rounded masks would cost more: strips of rows pack worse"
            self.graph.decisions.append(Decision("", "input masks left as they were", why))
        self.share = share

    def drop_unmet(self) -> int:
        """Mask the inputs that meet no nonzero weight; returns how many.

        The function stays exactly the same. The energy never rises: otherwise it is undone.
        """
        before, energy = [t.clone() for t in self.tensors], self.energy()
        dropped = 0
        with torch.no_grad():
            for mask, tensor in zip(self.masks, self.tensors, strict=True):
                met = torch.from_numpy(self._met(mask)).to(tensor.device)
                dropped += int(torch.count_nonzero(tensor.masked_fill(met, 0.0)))
                tensor.masked_fill_(~met, 0.0)
        self.refresh()
        if self.energy() > energy:
            self._restore(before)
            return 0
        return dropped

    def silence(self, least: Mapping[str, int]) -> int:
        """Zero the weights whose inputs are all masked; returns how many.

        The function stays exactly the same, as long as zero times a weight is zero.

        Args:
            least: Weights that a layer keeps at least; one that would fall below stays as it is.
        """
        silenced = 0
        for name in {mask.site for mask in self.masks}:
            site = self.graph.by_name[name]
            own = [m for m in self.masks if m.site == name]
            if len(own) != sum(use.count for use in site.uses):
                continue  # some call of the layer has no mask
            alive = sum((self._channels(mask) for mask in own), torch.zeros(()))
            weight, shape = self.graph.weight(site), self._uses(own[0])[0].shape
            rows = weight.view(shape.groups, shape.out_per_group, -1, *shape.kernel)
            dead = (alive == 0).view(shape.groups, 1, -1, *[1] * len(shape.kernel)).to(rows.device)
            useless = int(torch.count_nonzero(rows.masked_fill(~dead, 0.0)))
            if int(torch.count_nonzero(rows)) - useless < least.get(name, 0):
                continue
            rows.masked_fill_(dead, 0.0)
            silenced += useless
        return silenced

    def energy(self) -> int | float:
        """Energy of all activations, by the supports as last counted."""
        return plain(sum(site.activation_energy(self.hardware) for site in self.graph.sites))

    def refresh(self) -> None:
        """Count the supports anew, after the masks were changed."""
        update_supports(self.graph)
        self.still_saved = still_saved(self.graph, plan_cuts(self.graph), self.hardware)

    def settle_channels(self, least: Mapping[str, int]) -> int:
        """Zero all weights that masked channels have made useless; returns how many readers'."""
        silenced = self.silence(least)
        cuts = plan_cuts(self.graph, least)
        silence_producers(self.graph, cuts)
        self.still_saved = still_saved(self.graph, cuts, self.hardware)
        return silenced

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the buffers."""
        state = {"share": self.share, "scores": self._scores}
        return state | {"still_saved": self.still_saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the buffers are loaded already."""
        self.share = float(state["share"])
        for score, value in zip(self._scores, state["scores"], strict=True):
            score.copy_(value)
        self.refresh()
        self.still_saved = plain(state["still_saved"])

    def _set(self, masks: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self.tensors, masks, strict=True):
                tensor.copy_(value)

    def _restore(self, masks: Sequence[Tensor]) -> None:
        self._set(masks)
        self.refresh()

    def _uses(self, mask: InputMask) -> list[Use]:
        return _fitting(self.graph.by_name[mask.site], tuple(mask_of(self.graph, mask).shape))

    def _opening(self, mask: InputMask, producer: Site | None) -> _Prices:
        """What each channel of a masked input costs where it is computed, if it can go."""
        channels = len(mask_of(self.graph, mask))
        price: int | float = 0
        if producer is not None and self.weighted:
            use = producer.uses[0]
            price = channel_price(use.shape, self.hardware, widths=use.widths)
        return np.full(channels, price)

    def _met(self, mask: InputMask) -> NDArray[np.bool_]:
        """Inputs that some weight reads, in whichever use of its size this may be."""
        weight = self.graph.weight(self.graph.by_name[mask.site])
        shapes = [use.shape for use in self._uses(mask)]
        each = [inputs_met(shape, channel_counts(weight, shape) > 0) for shape in shapes]
        met: NDArray[np.bool_] = np.logical_or.reduce(each)
        return met

    def _channels(self, mask: InputMask) -> Tensor:
        """Entries that are left in each channel."""
        return torch.count_nonzero(mask_of(self.graph, mask).flatten(1), dim=1)


def least_saved(
    graph: ModelGraph, hardware: Hardware, share: float, *, weighted: bool
) -> int | float:
    """Energy that masks save at least by keeping a share, but for rows that are fetched again.

    Args:
        graph: The traced model; read only.
        hardware: What inputs cost.
        share: What is kept of all inputs.
        weighted: By their energy; otherwise by their number.

    Raises:
        PreconditionError: No input can be masked.
    """
    places = [_price(_fitting(*place), hardware) for place in maskable_inputs(graph)]
    prices, parts = _integers(places)
    if weighted:
        saved = _capacity(prices, 1.0) - _capacity(prices, share)
    else:
        counted = [np.ones_like(price) for price in prices]
        dropped = _capacity(counted, 1.0) - _capacity(counted, share)
        cheapest = np.sort(np.concatenate([price.reshape(-1) for price in prices]))[:dropped]
        saved = int(cheapest.sum())
    return plain(saved / parts) if parts > 1 else saved


def _fitting(site: Site, size: tuple[int, ...]) -> list[Use]:
    """The uses of a site that take inputs of shape `size`, of one sample."""
    each = ((use, (use.shape.in_channels, *use.shape.input_size)) for use in site.uses)
    return [use for use, own in each if own == size]


def _price(uses: Sequence[Use], hardware: Hardware) -> _Prices:
    """Energy of each input; the least, where the uses of one weight differ in their steps."""
    each = [input_prices(use.shape, hardware, widths=use.widths) for use in uses]
    least: _Prices = np.minimum.reduce(each)
    return least


def _integers(prices: Sequence[_Prices]) -> tuple[list[NDArray[np.int64]], int]:
    """Prices as the projection needs them: whole, or else all of them in 1/256; and in how many."""
    parts = 1 if all(np.issubdtype(price.dtype, np.integer) for price in prices) else PARTS
    return [(price * parts).astype(np.int64) for price in prices], parts


def _capacity(prices: Sequence[NDArray[np.int64]], share: float) -> int:
    """A share of all prices, rounded down."""
    # A share such as 0.29 is not exact in binary: 0.29 of 100 entries is 29, not 28.
    total = sum(int(price.sum()) for price in prices)
    return min(total, math.floor(round(share * total, 6)))
