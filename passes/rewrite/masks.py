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


def _chains(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """The parametrizations of a module, by the name of the tensor."""
    if not parametrize.is_parametrized(module):
        return {}
    return dict(module.get_submodule("parametrizations").named_children())  # type: ignore[arg-type]


def _attach(module: nn.Module, path: str, attribute: str, keep: Tensor) -> None:
    chains = _chains(module)
    if not all(isinstance(chain[0], Mask) for chain in chains.values()) or attribute in chains:
        raise PreconditionError(
            "the layer is parametrized already",
            where=path,
            remedy="Merge it first: torch.nn.utils.parametrize.remove_parametrizations(...).",
        )
    first = next((chain[0] for chain in chains.values()), None)
    order = first.order if isinstance(first, Mask) else tuple(module._parameters)
    parametrize.register_parametrization(module, attribute, Mask(keep, order), unsafe=True)


def bake_masks(graph: ModelGraph) -> None:
    """Write every mask into its weight and restore the plain modules.

    Afterwards the modules have their own class, their own parameter objects (so that ties and
    optimizers hold) in their original order, and exact zeros.
    """
    for module in list(graph.module.modules()):
        chains = _chains(module)
        if chains and all(isinstance(chain[0], Mask) for chain in chains.values()):
            _bake(module, chains)


def _bake(module: nn.Module, chains: dict[str, parametrize.ParametrizationList]) -> None:
    order: tuple[str, ...] = ()
    with torch.no_grad():
        for chain in chains.values():
            chain.original.copy_(chain())
    # A deep copy shares the dynamic class of a parametrized module: leave that class, not alter it.
    module.__class__ = type(module).__mro__[1]
    del module._modules["parametrizations"]
    for name, chain in chains.items():
        module._parameters[name] = chain.original  # type: ignore[assignment]
        order = chain[0].order if isinstance(chain[0], Mask) else order
    module._parameters = {n: module._parameters[n] for n in order}
