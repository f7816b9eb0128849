"""Codes of a grid that fit a layer's outputs: rounding with feedback, then descent.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023: columns are rounded one after another, and
those that are left make up for the error as well as they can; with zeros forced as in Frantar and
Alistarh, "SparseGPT", ICML 2023. Afterwards single codes move to their best values, cyclically, as
long as that lowers the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.quantize.encoding import Encoding
from passes.reconstruct.least_squares import damped

_BLOCK = 64
_SWEEPS = 20

DESCENT_FLOPS = 5e10
"""Up to so many operations codes are moved again; at least once."""


def errors(matrix: Tensor, target: Tensor, hessian: Tensor) -> Tensor:
    """Of every row (w - t) H (w - t)': `(rows,)`."""
    off = matrix - target
    return ((off @ hessian) * off).sum(1)


def fit_codes(
    target: Tensor, hessian: Tensor, encoding: Encoding, mask: Tensor, damping: float = 0.0
) -> Tensor:
    """Levels that minimise the error (w - t) H (w - t)' of every row; never worse than rounding.

    Args:
        target: Wanted weights t, float64 `(rows, cols)`, zero where the mask is.
        hessian: Moments of the inputs H, `(cols, cols)`.
        encoding: The grid.
        mask: Which weights may differ from zero, bool `(rows, cols)`.
        damping: Added to H, relative to its mean diagonal.

    Returns:
        The levels, float64 `(rows, cols)`.
    """
    matrix = damped(hessian, damping)
    grid = _Grid(encoding, target, mask)
    rounded = grid.nearest(target)
    guided = _feedback(target, matrix, grid)
    better = errors(guided, target, matrix) < errors(rounded, target, matrix)
    return _descend(torch.where(better[:, None], guided, rounded), target, matrix, grid)


class _Grid:
    """The levels of every element of a matrix."""

    def __init__(self, encoding: Encoding, like: Tensor, mask: Tensor) -> None:
        scales = encoding.scales(like.shape[1]).to(like.device, torch.float64)
        self.scales = scales.expand_as(like)
        self.mask = mask
        self.largest = encoding.largest

    def nearest(self, values: Tensor, cols: slice | int | Tensor = slice(None)) -> Tensor:
        """The nearest levels of values in some columns."""
        scales = self.scales[:, cols]
        codes = torch.round(values / scales).clamp(-self.largest, self.largest)
        return torch.where(self.mask[:, cols], codes * scales, 0.0)


def _feedback(target: Tensor, matrix: Tensor, grid: _Grid) -> Tensor:
    """Round column by column, by falling diagonal; the columns that are left absorb the error."""
    order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix[order[:, None], order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    values, levels = target[:, order], torch.zeros_like(target)
    cols = len(matrix)
    for first in range(0, cols, _BLOCK):
        last = min(first + _BLOCK, cols)
        lost = torch.zeros_like(values[:, first:last])
        for j in range(first, last):
            column = int(order[j])
            levels[:, column] = grid.nearest(values[:, j], column)
            lost[:, j - first] = (values[:, j] - levels[:, column]) / factor[j, j]
            values[:, j:last] -= lost[:, j - first, None] * factor[j, j:last]
        values[:, last:] -= lost @ factor[first:last, last:]
    return levels


def _descend(levels: Tensor, target: Tensor, matrix: Tensor, grid: _Grid) -> Tensor:
    """Move one column after another to the best levels, given all others."""
    rows, cols = target.shape
    sweeps = min(_SWEEPS, max(1, int(DESCENT_FLOPS / (2 * rows * cols * cols))))
    levels, gradient = levels.clone(), (target - levels) @ matrix
    diagonal = matrix.diagonal()
    for _ in range(sweeps):
        before = levels.clone()
        for first in range(0, cols, _BLOCK):
            block = slice(first, min(first + _BLOCK, cols))
            near = gradient[:, block].clone()
            for j in range(first, block.stop):
                wanted = levels[:, j] + near[:, j - first] / diagonal[j]
                best = grid.nearest(wanted, j)
                near -= (best - levels[:, j])[:, None] * matrix[j, block]
                levels[:, j] = best
            gradient -= (levels[:, block] - before[:, block]) @ matrix[block]
        if torch.equal(levels, before):
            break
    return levels
