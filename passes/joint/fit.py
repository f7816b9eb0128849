"""Codebooks that fit the weights of a layer best, for one width or for all at once.

V-step of Yang, Gui, Zhu, Liu, CVPR 2020: E(b) = least sum of squares of the values about the
nearest of 2^b levels or zero. The published k-means finds a local optimum; these are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.joint.codebook import WIDTHS, Codebook, Kind, check_request
from passes.joint.free_levels import FreeLevels, used
from passes.joint.points import SortedValues
from passes.joint.uniform_levels import UniformLevels, largest_code


def fit_codebook(
    values: Tensor, bits: int, *, reserved_zero: bool = True, kind: Kind = "free"
) -> Codebook:
    """The codebook of least squared error.

    Free levels are exact for up to 20,000 distinct values; beyond, neighbouring values are put
    together first, which on weights of many shapes cost 0.2 % of the error with 8 bits and less
    with fewer. Uniform grids are exact for up to a million jumps of a code.

    Args:
        values: Tensor of any shape and floating dtype; read only.
        bits: Width of a code, 1 to 8.
        reserved_zero: Zero is one more level, without a code. Of free levels, any value may be
            rounded to it; on a uniform grid it belongs to exact zeros only while fitting: codes are
            `-K ... K` without 0 and K = 2^(bits - 1). If not, free levels may be anywhere and a
            uniform grid has K = 2^(bits - 1) - 1 and zero among its codes.
        kind: `"free"` or `"uniform"`.

    Raises:
        ArgumentError: A width or a kind that is not allowed; a uniform grid of one bit without
            reserved zero, which has no level but zero.
        PreconditionError: A value is not finite or beyond float32.
    """
    check_request(bits, kind, "fit_codebook")
    if not _possible(bits, kind, reserved_zero):
        raise ArgumentError(
            "one bit holds no symmetric grid with zero",
            where="fit_codebook.bits",
            remedy="Give 2 bits or more, reserve zero, or take free levels.",
        )
    return _fitter(values, kind, reserved_zero)(bits)


def fit_codebooks(
    values: Tensor,
    *,
    kind: Kind = "free",
    reserved_zero: bool = True,
    bits: Sequence[int] = WIDTHS,
) -> dict[int, Codebook]:
    """The codebooks of several widths, from one dynamic programme; errors never grow with bits.

    Args:
        values: As for `fit_codebook`.
        kind: As for `fit_codebook`.
        reserved_zero: As for `fit_codebook`.
        bits: Widths, 1 to 8.

    Returns:
        By width, ascending; without that of one bit where there is none (`fit_codebook`).

    Raises:
        ArgumentError: A width or a kind that is not allowed.
        PreconditionError: A value is not finite or beyond float32.
    """
    for width in bits:
        check_request(width, kind, "fit_codebooks")
    fit = _fitter(values, kind, reserved_zero)
    result: dict[int, Codebook] = {}
    best: Codebook | None = None
    for width in sorted(set(bits)):
        if _possible(width, kind, reserved_zero):
            found = fit(width)
            if best is not None and kind == "free" and best.sse < found.sse:
                found = replace(best, bits=width)
            result[width] = best = found
    return result


def codebook_costs(
    values: Tensor,
    *,
    kind: Kind = "free",
    reserved_zero: bool = True,
    bits: Sequence[int] = WIDTHS,
) -> Tensor:
    """The errors of the best codebooks of all widths: a row for `allocate_bits`.

    Args:
        values: As for `fit_codebook`.
        kind: As for `fit_codebook`.
        reserved_zero: As for `fit_codebook`.
        bits: Allowed widths, 1 to 8.

    Returns:
        float64 `(8,)`: the squared error with 1 to 8 bits, never growing; infinite for widths that
        are not allowed.

    Raises:
        ArgumentError: A width or a kind that is not allowed.
        PreconditionError: A value is not finite or beyond float32.
    """
    for width in bits:
        check_request(width, kind, "codebook_costs")
    uniform = kind == "uniform"
    values_ = SortedValues.of(values, zeros=not (uniform or reserved_zero), magnitudes=uniform)
    free = None if uniform else FreeLevels(values_, reserved_zero)
    grid = UniformLevels(values_, reserved_zero) if uniform else None
    costs = np.full(len(WIDTHS), np.inf)
    least = np.inf
    for width in sorted(set(bits)):
        if _possible(width, kind, reserved_zero):
            found = free.error(1 << width) if free else grid.error(width) if grid else 0.0
            least = min(least, found)
            costs[width - 1] = np.ldexp(least, 2 * values_.exponent)
    return torch.from_numpy(costs)


def _possible(bits: int, kind: str, reserved_zero: bool) -> bool:
    return bits > 1 or reserved_zero or kind == "free"


def _fitter(values: Tensor, kind: Kind, reserved_zero: bool) -> Callable[[int], Codebook]:
    """A function that fits the codebook of a width."""
    if kind == "free":
        ordered = SortedValues.of(values, zeros=not reserved_zero)
        free = FreeLevels(ordered, reserved_zero)

        def fit_free(bits: int) -> Codebook:
            found = free.levels(1 << bits) if ordered.size else np.empty(0)
            levels = used(found, ordered.exponent, reserved_zero=reserved_zero)
            return _measured(Codebook(torch.from_numpy(levels), bits, kind, reserved_zero), values)

        return fit_free
    grid = UniformLevels(SortedValues.of(values, zeros=False, magnitudes=True), reserved_zero)

    def fit_uniform(bits: int) -> Codebook:
        scale, top = grid.scale(bits), largest_code(bits, reserved_zero=reserved_zero)
        codes = torch.arange(-top, top + 1, dtype=torch.float32)
        levels = (codes[codes != 0] if reserved_zero else codes) * scale
        codebook = Codebook(levels, bits, kind, reserved_zero, scale=scale)
        return _measured(codebook, values)

    return fit_uniform


def _measured(codebook: Codebook, values: Tensor) -> Codebook:
    if not len(codebook.table):
        return replace(codebook, sse=0.0)
    return replace(codebook, sse=codebook.error(values))
