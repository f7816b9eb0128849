"""Batch norms that stay, as one factor and one shift per channel: half the numbers to store.

    y = g' x + b'   with   g' = gamma / sqrt(var + eps),   b' = beta - mean g'

In evaluation mode a norm is this, whatever its statistics. A file that holds a product and a sum
instead is smaller, exporters do not fold them into the layer before, whose weights would lose their
codebook, and runtimes do it when they load the file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.joint.lloyd import rounded

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What was rounded to at most so many bits is found again in spite of the roundings between.
_SHORT = 12
_NOISE = 2.0**-22


def norms_of(module: nn.Module) -> list[Any]:
    """Batch norms with statistics and with factors, which evaluation mode applies as written."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _NORMS) and part.running_mean is not None and part.affine
    ]


def factors(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift of every channel, float64 `(channels,)`."""
    factor = norm.weight.detach().double() / _deviation(norm)
    return factor, norm.bias.detach().double() - norm.running_mean.double() * factor


def round_norm(norm: Any, significand: int) -> None:
    """Change gamma and beta so that factor and shift have so many significant bits."""
    factor, shift = factors(norm)
    factor = rounded(factor, significand)
    shift = rounded(norm.bias.detach().double() - norm.running_mean.double() * factor, significand)
    with torch.no_grad():
        norm.weight.copy_(factor * _deviation(norm))
        norm.bias.copy_(shift + norm.running_mean.double() * factor)


class ChannelAffine(nn.Module):
    """A factor and a shift for every channel: `(N, C, *spatial)` to the same shape.

    Args:
        factor: Of shape `(C,)`.
        shift: Of shape `(C,)`.
        spatial: Number of dimensions after the channels; of one, there may also be none.
    """

    def __init__(self, factor: Tensor, shift: Tensor, spatial: int) -> None:
        super().__init__()
        shape = (-1, *[1] * spatial)
        self.register_buffer("factor", factor.view(shape))
        self.register_buffer("shift", shift.view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Factor times input plus shift."""
        factor: Any = self.factor
        shift: Any = self.shift
        if inputs.dim() == factor.dim():  # no positions: channels come last
            factor, shift = factor.flatten(), shift.flatten()
        result: Tensor = inputs * factor + shift
        return result


def make_plain(module: nn.Module) -> None:
    """Replace every norm of a frozen module by the product and sum that it is.

    Args:
        module: In evaluation mode; changed in place, so it must be a copy.
    """
    replaced = {id(norm): _plain(norm) for norm in norms_of(module)}
    for parent in list(module.modules()):
        # A norm may have several names, of which `named_children` tells the first.
        for name, child in list(parent._modules.items()):
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])


def _plain(norm: Any) -> ChannelAffine:
    factor, shift = factors(norm)
    factor = _shortened(factor, factor.abs())
    moved = (norm.running_mean.double() * factor).abs()
    scale = torch.maximum(torch.maximum(norm.bias.double().abs(), moved), shift.abs())
    shift = _shortened(shift, scale)
    spatial = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    dims = next(count for kind, count in spatial.items() if isinstance(norm, kind))
    kind = norm.weight.dtype
    return ChannelAffine(factor.to(kind), shift.to(kind), dims).eval()


def _deviation(norm: Any) -> Tensor:
    return torch.sqrt(norm.running_var.double() + norm.eps)


def _shortened(values: Tensor, scale: Tensor) -> Tensor:
    """Values that lie within rounding errors of a short number become that number."""
    short = rounded(values, _SHORT)
    return torch.where((short - values).abs() <= _NOISE * scale, short, values)
