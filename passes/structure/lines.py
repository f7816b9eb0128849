"""Lines: how many indices along the dimensions of parameters stay, as sums over kept units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from passes.graph import ModelGraph, Site
from passes.structure.groups import ChannelGroups
from passes.structure.state import State, kept_along


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The indices along one dimension of a parameter, or along a part of it.

    Attributes:
        size: Number of indices.
        units: Of every group that cuts it, by name, the unit of each index, or -1: `(size,)`.
        counts: Of every such group, how many indices each of its units holds: int64 `(units,)`.
    """

    size: int
    units: Mapping[str, NDArray[np.int64]]
    counts: Mapping[str, NDArray[np.int64]]

    def kept(self, state: State) -> int:
        """How many indices stay."""
        lost = sum(int(counts[~state[name]].sum()) for name, counts in self.counts.items())
        return self.size - lost

    def mask(self, state: State) -> NDArray[np.bool_]:
        """Of every index, whether it stays: `(size,)`."""
        mask = np.ones(self.size, dtype=bool)
        for name, units in self.units.items():
            mask &= kept_along(units, state[name])
        return mask


@dataclass(frozen=True, slots=True)
class Side:
    """One dimension of a tensor.

    Attributes:
        size: Its full length.
        line: Number of its line; `None` if no free group cuts it.
    """

    size: int
    line: int | None = None

    def length(self, lengths: list[int]) -> int:
        """How many indices stay, given those of every line."""
        return self.size if self.line is None else lengths[self.line]


class Lines:
    """The lines of a model; equal ones are one.

    Args:
        graph: The traced model.
        groups: Its groups; only free ones cut.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups) -> None:
        self._graph = graph
        self._sizes = {group.name: group.units for group in groups.free}
        self._maps: dict[int, dict[int, dict[str, NDArray[np.int64]]]] = {}
        self._roles: dict[int, dict[int, str]] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self.all: list[Line] = []
        for group in groups:
            for member in group.members:
                tensor = held(graph, member.path, member.attribute)
                if tensor is None:
                    continue
                self._roles.setdefault(id(tensor), {})[member.dim] = member.role
                if not group.frozen:
                    dims = self._maps.setdefault(id(tensor), {})
                    dims.setdefault(member.dim, {})[group.name] = member.units

    def roles(self, tensor: Tensor) -> Mapping[int, str]:
        """Of every dimension that holds channels, free or frozen, the role of its members."""
        return self._roles.get(id(tensor), {})

    def cutting(self, tensor: Tensor) -> frozenset[str]:
        """The free groups that cut a parameter or buffer."""
        return frozenset(name for maps in self._maps.get(id(tensor), {}).values() for name in maps)

    def side(self, tensor: Tensor, dim: int, start: int = 0, stop: int | None = None) -> Side:
        """One dimension of a parameter or buffer, or the part `start:stop` of it."""
        maps = self._maps.get(id(tensor), {}).get(dim, {})
        parts = {name: units[start:stop] for name, units in maps.items()}
        size = len(range(*slice(start, stop).indices(tensor.shape[dim])))
        parts = {name: units for name, units in parts.items() if (units >= 0).any()}
        if not parts:
            return Side(size)
        key = (size, *((name, units.tobytes()) for name, units in parts.items()))
        if key not in self._numbers:
            self._numbers[key] = len(self.all)
            counts = {
                name: np.bincount(units[units >= 0], minlength=self._sizes[name])
                for name, units in parts.items()
            }
            self.all.append(Line(size, parts, counts))
        return Side(size, self._numbers[key])

    def sides(self, tensor: Tensor) -> tuple[Side, ...]:
        """All dimensions of a parameter or buffer."""
        return tuple(self.side(tensor, dim) for dim in range(tensor.dim()))

    def of_site(self, site: Site) -> tuple[Side, ...] | None:
        """The dimensions of a site's weight; `None` if it is no whole rows of its parameter."""
        parameter = self._graph.parameter(site)
        if site.size == parameter.numel():
            return self.sides(parameter)
        row = parameter[0].numel()
        if site.start % row or site.size % row:
            return None
        first, last = site.start // row, (site.start + site.size) // row
        return (self.side(parameter, 0, first, last), *self.sides(parameter)[1:])


def held(graph: ModelGraph, path: str, attribute: str) -> Tensor | None:
    """A parameter or buffer of the model, or of its traced graph."""
    for model in (graph.module, graph.graph_module):
        if model is None:
            continue
        try:
            part = model.get_submodule(path)
        except AttributeError:
            continue
        value = part._parameters.get(attribute, part._buffers.get(attribute))
        if value is not None:
            return value
    return None
