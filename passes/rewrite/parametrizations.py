"""Parametrizations of ours on weights: attached one after another, baked into plain weights."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from energy_model.errors import PreconditionError


class Removable(nn.Module):
    """A parametrization that `bake` can write into the weight: one tensor in, one like it out.

    Attributes:
        order: Names of the layer's parameters before the first of ours was attached.
    """

    order: tuple[str, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        """What the layer sees instead of the weight; same shape and type."""
        raise NotImplementedError


def chains_of(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """The parametrizations of a module, by the name of the tensor."""
    if not parametrize.is_parametrized(module):
        return {}
    return dict(module.get_submodule("parametrizations").named_children())  # type: ignore[arg-type]


def attach(
    module: nn.Module, path: str, attribute: str, part: Removable, *, first: bool = False
) -> None:
    """Parametrize one tensor of a layer.

    Args:
        module: The layer, changed in place.
        path: Where it stands, for errors.
        attribute: Name of the tensor.
        part: The parametrization.
        first: Apply it before those that are there already, instead of after them.

    Raises:
        PreconditionError: The layer has a parametrization that is not ours, or one of this class.
    """
    chains = chains_of(module)
    ours = all(isinstance(p, Removable) for chain in chains.values() for p in chain)
    if not ours or any(type(p) is type(part) for p in chains.get(attribute, ())):
        raise PreconditionError(
            "the layer is parametrized already",
            where=path,
            remedy="Merge it first: torch.nn.utils.parametrize.remove_parametrizations(...).",
        )
    known = next((chain[0].order for chain in chains.values()), None)
    part.order = tuple(module._parameters) if known is None else known  # type: ignore[assignment]
    if first and attribute in chains:
        chains[attribute].insert(0, part.train(module.training))
    else:
        parametrize.register_parametrization(module, attribute, part, unsafe=True)


def bake(module: nn.Module, kinds: tuple[type[Removable], ...]) -> None:
    """Write the first parametrizations of every chain, as far as they are of some kinds.

    When nothing else is left, the module is plain again: its own class, its own parameter objects
    (so that ties and optimizers hold) in their original order. Modules with parametrizations that
    are not ours are left alone.

    Args:
        module: A layer, changed in place.
        kinds: Which parametrizations to write.
    """
    chains = chains_of(module)
    if not all(isinstance(part, Removable) for chain in chains.values() for part in chain):
        return
    written = {name: _first(chain, kinds) for name, chain in chains.items()}
    if not any(written.values()):
        return
    with torch.no_grad():
        for name, parts in written.items():
            value = chains[name].original
            for part in parts:
                value = part(value)
            chains[name].original.copy_(value)
    if all(len(written[name]) == len(chain) for name, chain in chains.items()):
        _restore(module, chains)
        return
    for name, parts in written.items():
        if len(parts) < len(chains[name]):  # a chain cannot be empty: it waits for the others
            del chains[name][: len(parts)]


def _first(
    chain: parametrize.ParametrizationList, kinds: tuple[type[Removable], ...]
) -> list[nn.Module]:
    return list(itertools.takewhile(lambda part: isinstance(part, kinds), chain))


def _restore(module: nn.Module, chains: dict[str, parametrize.ParametrizationList]) -> None:
    order: tuple[str, ...] = next(iter(chains.values()))[0].order  # type: ignore[assignment]
    # A deep copy shares the dynamic class of a parametrized module: leave that class, not alter it.
    module.__class__ = type(module).__mro__[1]
    del module._modules["parametrizations"]
    for name, chain in chains.items():
        module._parameters[name] = chain.original  # type: ignore[assignment]
    module._parameters = {n: module._parameters[n] for n in order}
