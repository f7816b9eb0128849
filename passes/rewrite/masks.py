"""Masks on weights: attached as parametrizations, baked into plain weights at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph, Site


class Mask(nn.Module):
    """Zeroes what the mask does not keep.

    `torch.where` rather than a product: `w * mask` would keep NaN and -0.0.

    Args:
        keep: Boolean tensor of the weight's shape; a buffer, so that it is in the `state_dict`.
        order: Names of the module's parameters before the mask was attached.
    """

    keep: Tensor

    def __init__(self, keep: Tensor, order: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.order = order

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, same shape."""
        return torch.where(self.keep, weight, torch.zeros((), dtype=weight.dtype))


def attach_masks(graph: ModelGraph, masks: Mapping[str, Tensor]) -> None:
    """Attach a mask to every named site.

    Sites that share a parameter share one mask; tied weights stay tied.

    Args:
        graph: The traced model; its modules are parametrized in place.
        masks: Boolean tensor per site name, with the elements of the site's weight.

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
            _attach(graph.module.get_submodule(path), path, attribute, keep)


def _attach(module: nn.Module, path: str, attribute: str, keep: Tensor) -> None:
    if parametrize.is_parametrized(module):
        raise PreconditionError(
            "the layer is parametrized already",
            where=path,
            remedy="Merge it first: torch.nn.utils.parametrize.remove_parametrizations(...).",
        )
    order = tuple(module._parameters)
    parametrize.register_parametrization(module, attribute, Mask(keep, order), unsafe=True)


def bake_masks(graph: ModelGraph) -> None:
    """Write every mask into its weight and restore the plain modules.

    Afterwards the modules have their own class, their own parameter objects (so that ties and
    optimizers hold) in their original order, and exact zeros.
    """
    for module in list(graph.module.modules()):
        if not parametrize.is_parametrized(module):
            continue
        lists = getattr(module, "parametrizations")  # noqa: B009 -- made by parametrize
        ours = [name for name, chain in lists.items() if isinstance(chain[-1], Mask)]
        for name in ours:
            _bake(module, name, lists[name])


def _bake(module: nn.Module, name: str, chain: parametrize.ParametrizationList) -> None:
    parameter, mask = chain.original, chain[-1]
    with torch.no_grad():
        parameter.copy_(chain())
    # A deep copy shares the dynamic class of a parametrized module: leave that class, not alter it.
    module.__class__ = type(module).__mro__[1]
    del module._modules["parametrizations"]
    module._parameters[name] = parameter
    order = mask.order if isinstance(mask, Mask) else ()
    module._parameters = {n: module._parameters[n] for n in order} | module._parameters
