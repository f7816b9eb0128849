"""Memory for slices of large tensors, used anew for every state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

# Elements of a tensor from which on its slices have memory of their own. An allocator asks the
# system for blocks of this size and gives them back at once, and the first touch of each page of a
# fresh one costs more than the slice.
_LARGE = 2**22


class SliceMemory:
    """`index_select` along several dimensions, into memory that large tensors keep.

    What it returns for a key is overwritten by the next call with that key. On accelerators, whose
    allocators hold on to blocks, and for small tensors, every slice is a new one.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, int], Tensor] = {}

    def select(self, key: Hashable, tensor: Tensor, cuts: Sequence[tuple[int, Tensor]]) -> Tensor:
        """What some indices leave of a tensor; the tensor itself for no cuts.

        Args:
            key: Whose slice it is: one for each tensor, which keeps its size and type.
            tensor: The whole tensor.
            cuts: Dimensions, and the indices that stay of each: int64, on the tensor's device.
        """
        large = tensor.numel() >= _LARGE and tensor.device.type == "cpu"
        for number, (dim, indices) in enumerate(cuts):
            if not large:
                tensor = tensor.index_select(dim, indices)
                continue
            shape = [*tensor.shape]
            shape[dim] = len(indices)
            room = self._room(key, number, tensor).narrow(0, 0, torch.Size(shape).numel())
            tensor = torch.index_select(tensor, dim, indices, out=room.view(shape))
        return tensor

    def _room(self, key: Hashable, number: int, tensor: Tensor) -> Tensor:
        """Memory for one cut of a tensor, for as many elements as there are before any cut."""
        place = key, number
        if place not in self._kept or self._kept[place].numel() < tensor.numel():
            self._kept[place] = tensor.new_empty(tensor.numel())
        return self._kept[place]
