"""What is left of a parameter, and of everything that has its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class TensorSlice:
    """The indices of a parameter or buffer that stay.

    Attributes:
        name: Its path, for errors.
        tensor: The parameter or buffer.
        keep: Indices by dimension, `(n,)` int64; dimensions that are not named stay whole.
    """

    name: str
    tensor: Tensor
    keep: Mapping[int, Tensor]

    def of(self, value: Tensor) -> Tensor:
        """The same part of another tensor of the same shape, as a copy."""
        for dim, indices in self.keep.items():
            value = value.index_select(dim, indices.to(value.device))
        return value

    def cut(self) -> Tensor:
        """What is left of the tensor: a new parameter with its gradient, or a new buffer."""
        left = self.of(self.tensor.detach())
        if not isinstance(self.tensor, nn.Parameter):
            return left
        parameter = nn.Parameter(left, requires_grad=self.tensor.requires_grad)
        if self.tensor.grad is not None:
            parameter.grad = self.of(self.tensor.grad)
        return parameter
