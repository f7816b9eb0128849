"""Keep-states as rows of bits: where the units of every channel group lie in a population."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.structure.groups import ChannelGroups
from passes.structure.state import State, checked_state


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes of a search, group after group: one for each unit of every free group.

    A keep-state is a row of bits, bool `(nodes,)`, true where the unit stays; a population is bool
    `(states, nodes)`. Both are on the CPU.

    Attributes:
        names: The free groups, in their order.
        sizes: Units of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, groups: ChannelGroups) -> Layout:
        """The layout of the free groups."""
        free = groups.free
        return cls(tuple(group.name for group in free), tuple(group.units for group in free))

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.sizes)

    @property
    def parts(self) -> dict[str, slice]:
        """Where each group lies, by name."""
        ends = accumulate(self.sizes)
        found = zip(self.names, self.sizes, ends, strict=True)
        return {name: slice(end - size, end) for name, size, end in found}

    def bits(self, groups: ChannelGroups, state: State) -> Tensor:
        """The row of a state, bool `(nodes,)`.

        Raises:
            ArgumentError: The state does not fit the groups.
        """
        found = checked_state(groups, state)
        rows = [np.asarray(found[name], dtype=bool) for name in self.names]
        return torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, dtype=bool))

    def state(self, bits: Tensor) -> dict[str, NDArray[np.bool_]]:
        """The state of a row.

        Raises:
            ArgumentError: It is no row of `nodes` booleans.
        """
        if bits.dtype != torch.bool or tuple(bits.shape) != (self.nodes,):
            raise ArgumentError(
                f"is {bits.dtype} of shape {tuple(bits.shape)}, expected bool ({self.nodes},)",
                where="keep-state",
            )
        row = bits.cpu().numpy()
        return {name: row[part].copy() for name, part in self.parts.items()}

    def flat(self, values: dict[str, NDArray[np.float64]]) -> Tensor:
        """Numbers by group as one row, float64 `(nodes,)`."""
        rows = [np.asarray(values[name], dtype=np.float64) for name in self.names]
        return torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0))

    def by_group(self, values: Tensor) -> dict[str, NDArray[np.float64]]:
        """A row of numbers, `(nodes,)`, by group."""
        row = values.detach().cpu().double().numpy()
        return {name: row[part].copy() for name, part in self.parts.items()}

    def kept(self, population: Tensor) -> Tensor:
        """Units that stay of every group, int64 `(states, groups)`."""
        counts = [population[:, part].sum(1, keepdim=True) for part in self.parts.values()]
        return torch.cat([torch.zeros(len(population), 0, dtype=torch.int64), *counts], dim=1)
