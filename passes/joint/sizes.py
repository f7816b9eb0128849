"""What sparse and quantized weights take, counted in the ways of the field.

Nominal: bits times nonzeros. The published reports (Yang, Gui, Zhu, Liu, CVPR 2020) take the
logarithm of the number of distinct values instead of the bits, and count neither positions nor
codebooks. The entropy bound counts both: no file that codes each position and each code by itself,
with its frequency, is smaller.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError

LEVEL_BITS = 32
"""Of every level in a codebook: a float32."""


def nominal_bits(weights: list[Tensor], bits: list[int]) -> int:
    """Bits of each layer times its nonzeros, summed: the size S of the method.

    Args:
        weights: One tensor per layer, weights or codes.
        bits: Width of each layer.

    Raises:
        ArgumentError: Lengths differ.
    """
    if len(weights) != len(bits):
        raise ArgumentError(
            f"{len(bits)} widths for {len(weights)} layers",
            where="nominal_bits.bits",
            remedy="Give one for each layer.",
        )
    return sum(b * int(torch.count_nonzero(w)) for w, b in zip(weights, bits, strict=True))


def position_bits(n: int, k: int) -> float:
    """Entropy of the positions of `k` nonzeros among `n` places, in bits: n H2(k / n).

    Args:
        n: Number of weights.
        k: Number of nonzeros.

    Raises:
        ArgumentError: `k` is not between 0 and `n`.
    """
    if not 0 <= k <= n:
        raise ArgumentError(
            f"{k} nonzeros among {n} weights", where="position_bits", remedy="Count again."
        )
    if k in (0, n):
        return 0.0
    return k * math.log2(n / k) + (n - k) * math.log2(n / (n - k))


def authors_bits(values: Tensor) -> float:
    """Size as in the published reports: log2(distinct values - 1, at least 1) times nonzeros.

    Values are told apart after rounding to 6 decimals; positions and codebook are not counted.
    """
    flat = values.detach().reshape(-1)
    distinct = len(torch.unique(torch.round(flat.float(), decimals=6)))
    return math.log2(max(1, distinct - 1)) * int(torch.count_nonzero(flat))


def entropy_bits(values: Tensor) -> float:
    """Entropy of positions and of nonzero values, and 32 bits for every distinct nonzero value.

    Args:
        values: The finished weight of one layer, any shape.
    """
    flat = values.detach().reshape(-1)
    nonzero = flat[flat != 0]
    _, counts = torch.unique(nonzero, return_counts=True)
    places = position_bits(flat.numel(), nonzero.numel())
    return places + code_entropy(counts) + LEVEL_BITS * len(counts)


def code_entropy(counts: Tensor) -> float:
    """Bits of all symbols at their empirical entropy.

    Args:
        counts: How often each symbol occurs, any shape; not negative.
    """
    each = counts.detach().cpu().numpy().astype(np.float64).ravel()
    each = each[each > 0]
    bits: np.float64 = (each * np.log2(each.sum() / each)).sum()
    return float(bits)
