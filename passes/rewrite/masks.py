"""Masks on weights: attached as parametrizations, baked into plain weights at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from passes.graph import ModelGraph, Site
from passes.rewrite.parametrizations import Removable, attach, bake, chains_of


class Mask(Removable):
    """Zeroes what the mask does not keep.

    `torch.where` rather than a product: `w * mask` would keep NaN and -0.0.

    Args:
        keep: Boolean tensor of the weight's shape; a buffer, so that it is in the `state_dict`.
    """

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, same shape."""
        return torch.where(self.keep, weight, torch.zeros((), dtype=weight.dtype))


class WatchedMask(Mask):
    """A mask that can tell the gradient of what it removes.

    Attributes:
        watching: Whether gradients are gathered; those of several backward passes add up.
        dense: Gradient of the loss by the weight as the layer sees it, of its shape; also where the
            mask keeps nothing. `None` before there is one.
    """

    def __init__(self, keep: Tensor) -> None:
        super().__init__(keep)
        self.watching = False
        self.dense: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, same shape."""
        masked = super().forward(weight)
        if self.watching and masked.requires_grad:
            masked.register_hook(self._gather)  # type: ignore[no-untyped-call]
        return masked

    def watch(self, *, watching: bool) -> None:
        """Begin or stop to gather; what was gathered is forgotten."""
        self.watching, self.dense = watching, None

    def _gather(self, gradient: Tensor) -> None:
        found = gradient.detach()
        self.dense = found.clone() if self.dense is None else self.dense + found


def attach_masks(graph: ModelGraph, masks: Mapping[str, Tensor], kind: type[Mask] = Mask) -> None:
    """Attach a mask to every named site.

    Sites that share a parameter share one mask; tied weights stay tied.

    Args:
        graph: The traced model; its modules are parametrized in place.
        masks: Boolean tensor per site name, with the elements of the site's weight.
        kind: What is attached.

    Raises:
        PreconditionError: A module is parametrized already.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Site]] = {}
    for name in masks:
        site = graph.by_name[name]
        groups.setdefault(site.owners, []).append(site)
    for owners, sites in groups.items():
        parameter = graph.parameter(sites[0])
        if len(sites) == 1 and sites[0].size == parameter.numel():
            keep = masks[sites[0].name].reshape(parameter.shape)
        else:
            flat = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
            for site in sites:
                flat[site.start : site.start + site.size] = masks[site.name].reshape(-1)
            keep = flat.reshape(parameter.shape)
        for path, attribute in owners:
            # Masked first, quantized afterwards: zero is on every grid.
            attach(graph.module.get_submodule(path), path, attribute, kind(keep), first=True)


def masks_of(graph: ModelGraph, site: Site) -> list[Mask]:
    """The masks on a site's parameter, one for each of its owners; they share one buffer."""
    chains = [
        chains_of(graph.module.get_submodule(path)).get(attribute, ())
        for path, attribute in site.owners
    ]
    return [part for chain in chains for part in chain if isinstance(part, Mask)]


def bake_masks(graph: ModelGraph) -> None:
    """Write every mask into its weight.

    Afterwards the modules have their own class, their own parameter objects (so that ties and
    optimizers hold) in their original order, and exact zeros. Quantizers of masked weights stay.
    """
    for module in list(graph.module.modules()):
        bake(module, (Mask,))
