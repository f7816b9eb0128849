"""Histograms of feature maps and their entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from passes.structure.groups import ChannelGroup, Reader

# Maps of 2x2 or fewer positions have almost no resolution as histograms.
_SMALL = 4


def entropy_bits(counts: Tensor) -> Tensor:
    """Shannon entropy of histograms, in bits; that of an empty one is 0.

    Args:
        counts: `(n, bins)`.

    Returns:
        float64 `(n,)`.
    """
    shares = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    # No term is positive: the absolute value keeps an entropy of 0 from becoming -0.
    return torch.xlogy(shares, shares).sum(-1).abs() / math.log(2)


def map_entropies(values: Tensor, units: Tensor, count: int, bins: int = 256) -> Tensor:
    """Entropy of the values of every unit, in bits.

    Args:
        values: Finite, `(channels, positions)`; the range of all of them is cut into equal bins.
        units: Unit of each channel, int64 `(channels,)`.
        count: Number of units.
        bins: Number of bins.

    Returns:
        float64 `(count,)`; 0 for constant maps and for units without a channel.
    """
    low, high = values.min(), values.max()
    if low == high:
        return torch.zeros(count, dtype=torch.float64)
    place = ((values - low) / (high - low) * bins).long().clamp(max=bins - 1)
    place += units[:, None] * bins
    counts = torch.bincount(place.reshape(-1), minlength=count * bins)
    return entropy_bits(counts.reshape(count, bins))


class GroupMaps:
    """What one node is given of a channel group, gathered over batches.

    Args:
        group: The group.
        reader: Where it is read.
    """

    def __init__(self, group: ChannelGroup, reader: Reader) -> None:
        self.group = group
        self._dim = reader.dim
        units = torch.from_numpy(reader.units)
        self._held = units >= 0
        self._units = units[self._held]
        self._sums: dict[int, Tensor] = {}  # by number of positions: (channels, positions)
        self._samples: dict[int, int] = {}
        self._small: list[Tensor] = []  # (channels, samples and positions)

    @property
    def read(self) -> bool:
        """Whether there was anything."""
        return bool(self._sums or self._small)

    @property
    def seen(self) -> Tensor:
        """Of every unit whether it is read here: 1 or 0, float64 `(units,)`."""
        return (torch.bincount(self._units, minlength=self.group.units) > 0).double()

    def add(self, value: Tensor, batch_size: int | None) -> None:
        """Take in a batch.

        Args:
            value: What the node is given.
            batch_size: Samples in the batch: a first dimension of another size is no batch.
        """
        batched = self._dim % value.dim() != 0 and value.shape[0] == batch_size
        channels = value.detach().movedim(self._dim, 0)[self._held.to(value.device)]
        if not channels.numel():
            return
        maps = channels.reshape(len(channels), value.shape[0] if batched else 1, -1)
        positions = maps.shape[2]
        # Behind a flatten the positions of a channel are indices of their own.
        repeats = len(self._units) / (self.group.units * max(1, self.group.unit_size))
        if positions * repeats <= _SMALL:
            self._small.append(maps.flatten(1).double().cpu())
            return
        total = maps.sum(1, dtype=torch.float64).cpu()
        self._sums[positions] = total + self._sums.get(positions, 0)
        self._samples[positions] = maps.shape[1] + self._samples.get(positions, 0)

    def entropies(self, bins: int) -> Tensor:
        """Entropy of every unit, in bits: float64 `(units,)`; 0 for what is not read here.

        Maps of several sizes are weighted by their number of samples.

        Raises:
            PreconditionError: A map is not finite.
        """
        parts = [(self._sums[p] / n, float(n)) for p, n in self._samples.items()]
        if self._small:
            small = torch.cat(self._small, dim=1)
            parts.append((small, float(sum(part.shape[1] for part in self._small))))
        if not all(bool(values.isfinite().all()) for values, _ in parts):
            raise PreconditionError(
                "its feature maps hold NaN or infinite values",
                where=f"channel group {self.group.name!r}",
                remedy="Look for NaN or infinite weights or inputs.",
            )
        total = sum(weight for _, weight in parts)
        found = torch.zeros(self.group.units, dtype=torch.float64)
        for values, weight in parts:
            found += map_entropies(values, self._units, self.group.units, bins) * (weight / total)
        return found
