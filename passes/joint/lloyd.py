"""A few steps of Lloyd's algorithm from the codebook that a weight has, while it is trained."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from passes.joint.codebook import Codebook
from passes.quantize.encoding import snap


def refit(codebook: Codebook, values: Tensor, iterations: int = 5) -> Codebook:
    """Move every level to the mean of what it stands for, some times; levels of nothing stay.

    Uniform levels move together, to the multiple of their codes that has the least squared error.

    Args:
        codebook: Where to begin.
        values: The weight as it is.
        iterations: How often.
    """
    flat = values.detach().reshape(-1).double()
    flat = flat[flat != 0] if codebook.reserved_zero else flat
    # On a uniform grid the zero that is reserved is a mask: nothing is rounded to it.
    to_zero = codebook.reserved_zero and codebook.kind == "free"
    levels = codebook.levels.to(flat.device).double()
    step = codebook.scale
    factors = torch.round(levels / step) if step else levels
    for _ in range(iterations if flat.numel() and levels.numel() else 0):
        codes = _codes(levels, flat, to_zero=to_zero)
        own = codes >= 0
        if step:
            chosen = factors[codes[own]]
            square = float((chosen * chosen).sum())
            if not square:
                break
            best = torch.tensor([float((flat[own] * chosen).sum()) / square])
            if not bool(best > 0):
                break
            step = float(snap(best))
            levels = factors * step
        else:
            count = torch.bincount(codes[own], minlength=len(levels))
            total = torch.bincount(codes[own], weights=flat[own], minlength=len(levels))
            levels = torch.where(count > 0, total / count.clamp(min=1), levels).sort().values
    found = torch.unique(levels.float()).cpu()
    return replace(codebook, levels=found, scale=step, sse=math.inf)


def _codes(levels: Tensor, values: Tensor, *, to_zero: bool) -> Tensor:
    """Index of the nearest level; -1 where zero is nearer and values may be rounded to it."""
    codes = torch.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    if to_zero:
        nearer = values.abs() <= (values - levels[codes]).abs()
        codes = torch.where(nearer, -1, codes)
    return codes


def rounded(values: Tensor, significand: int) -> Tensor:
    """Values with so many significant bits, the nearest ones; same shape and type."""
    mantissa, exponent = torch.frexp(values.detach())
    scale = 2.0**significand
    return torch.ldexp(torch.round(mantissa * scale) / scale, exponent)


def rounded_codebook(codebook: Codebook, significand: int) -> Codebook:
    """The codebook with fewer significant bits in its levels."""
    levels = torch.unique(rounded(codebook.levels, significand))
    return replace(codebook, levels=levels, sse=math.inf)
