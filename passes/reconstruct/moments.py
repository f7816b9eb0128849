"""Second moments of a layer's inputs and of the outputs that it should have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 2**24
"""Numbers in one piece of unfolded inputs: 64 MiB in single precision."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means over all rows (sample and position) of inputs x and wanted outputs y, per group.

    Attributes:
        count: Number of rows.
        mean_x: `(groups, cols)`.
        mean_y: `(groups, rows)`.
        xx: Covariance of the inputs, `(groups, cols, cols)`.
        yx: Covariance of outputs and inputs, `(groups, rows, cols)`.
        yy: Variances of the outputs, `(groups, rows)`.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    def about_zero(self) -> Moments:
        """The same with second moments about zero instead of the means."""
        x, y = self.mean_x, self.mean_y
        return Moments(
            self.count,
            torch.zeros_like(x),
            torch.zeros_like(y),
            self.xx + x[:, :, None] * x[:, None],
            self.yx + y[:, :, None] * x[:, None],
            self.yy + y.square(),
        )


def groups_of(layer: Layer) -> int:
    """Independent parts of a layer's weight."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def unfolded(layer: Layer, x: Tensor) -> Tensor:
    """Inputs as the columns of a matrix that the weight is multiplied with.

    Args:
        layer: A linear layer or a convolution with one or two spatial dimensions.
        x: Its input; any leading dimensions for a linear layer.

    Returns:
        Tensor `(groups, cols, n)`, so that output = weight `(groups, rows, cols)` times it.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T[None]
    dims = len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(_batched(x, dims), layer._reversed_padding_repeated_twice, mode=mode)
    window = [layer.kernel_size, layer.dilation, layer.stride]
    if dims == 1:
        x, window = x.unsqueeze(2), [(1, *sizes) for sizes in window]
    kernel, dilation, stride = window
    parts = F.unfold(x, kernel, dilation, 0, stride)
    return _columns(parts, layer.groups)


def as_columns(layer: Layer, y: Tensor) -> Tensor:
    """Outputs in the order of `unfolded`: `(groups, rows, n)`."""
    if isinstance(layer, nn.Linear):
        return y.reshape(-1, y.shape[-1]).T[None]
    return _columns(_batched(y, len(layer.kernel_size)).flatten(2), layer.groups)


def _batched(x: Tensor, dims: int) -> Tensor:
    return x.unsqueeze(0) if x.dim() == dims + 1 else x


def _columns(x: Tensor, groups: int) -> Tensor:
    """`(N, groups * c, P)` as `(groups, c, N * P)`."""
    samples, channels, positions = x.shape
    parts = x.reshape(samples, groups, channels // groups, positions)
    return parts.permute(1, 2, 0, 3).flatten(2)


def gather_moments(layer: Layer, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Moments over batches, accumulated in float64.

    Args:
        layer: The layer that is to be fitted.
        pairs: Its inputs, and its wanted outputs of the shape of its own.
    """
    total = _Sums()
    for x, y in pairs:
        if x.dtype.itemsize < 4:  # sums of squares do not fit half precision
            x, y = x.float(), y.float()
        for part, wanted in _pieces(layer, x, y):
            total.add(unfolded(layer, part), as_columns(layer, wanted))
    return total.moments()


def _pieces(layer: Layer, x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Parts of a batch that are not too large when unfolded."""
    samples = max(1, x.shape[0])
    cols = layer.weight[0].numel() * groups_of(layer)
    per_sample = y.numel() // (samples * layer.weight.shape[0]) * cols
    step = max(1, CHUNK // max(1, per_sample))
    flat = not isinstance(layer, nn.Linear) and x.dim() == len(layer.kernel_size) + 1
    if flat or x.dim() < 2 or step >= samples:
        return [(x, y)]
    return zip(torch.split(x, step), torch.split(y, step), strict=True)


class _Sums:
    """Running sums about a point near the mean, so that little is lost by subtracting it."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        if self.count == 0:
            self.x0, self.y0 = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
            shapes = (x.shape[1],), (y.shape[1],), (x.shape[1],) * 2, (y.shape[1], x.shape[1])
            self.sums = [
                torch.zeros(x.shape[0], *s, dtype=torch.float64, device=x.device)
                for s in (*shapes, (y.shape[1],))
            ]
        x, y = x - self.x0, y - self.y0
        self.count += x.shape[2]
        new = (x.sum(2), y.sum(2), x @ x.mT, y @ x.mT, y.square().sum(2))
        for total, part in zip(self.sums, new, strict=True):
            total += part

    def moments(self) -> Moments:
        x, y, xx, yx, yy = (total / self.count for total in self.sums)
        return Moments(
            self.count,
            self.x0.squeeze(2).double() + x,
            self.y0.squeeze(2).double() + y,
            xx - x[:, :, None] * x[:, None],
            yx - y[:, :, None] * x[:, None],
            yy - y.square(),
        )
