"""Least squares on the weights that a mask keeps."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_FLOPS = 5e10
"""Up to so many operations supports are solved one by one by Cholesky; beyond, by iteration."""

TOLERANCE = 1e-3
"""Norm of the preconditioned residual, relative to the first, at which the iteration stops."""

_ITERATIONS = 100
# Keeps a singular problem solvable; far below what the data can tell.
_JITTER = 1e-10


def damped(hessian: Tensor, damping: float) -> Tensor:
    """The matrix plus a part of its mean diagonal, more if it is not positive definite otherwise.

    Args:
        hessian: Positive semidefinite but for rounding, `(cols, cols)`; zero becomes the identity.
        damping: Relative to the mean diagonal.
    """
    mean = hessian.diagonal().mean()
    unit = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    unit *= torch.where(mean > 0, mean, torch.ones_like(mean))
    ridge = damping + _JITTER
    while True:
        matrix = hessian + ridge * unit
        if int(torch.linalg.cholesky_ex(matrix).info) == 0 or ridge > 1:
            return matrix
        ridge *= 10


def fit_masked(
    cross: Tensor, hessian: Tensor, mask: Tensor, prior: Tensor, damping: float
) -> Tensor:
    """Minimise the error of every row over the weights that are kept, near a prior.

    The error of a row w is w H w' - 2 w c' + d |w - p|^2, with d the damping times the mean
    diagonal of H. Without damping no row has a larger error w H w' - 2 w c' than its prior.

    Args:
        cross: Moments of wanted outputs and inputs, float64 `(rows, cols)`; H W* if W* is wanted.
        hessian: Moments of the inputs H, `(cols, cols)`.
        mask: Which weights are kept, bool `(rows, cols)`; the others are zero.
        prior: Weights to stay near, `(rows, cols)`.
        damping: Relative to the mean diagonal of H.

    Returns:
        The weights, `(rows, cols)`.
    """
    prior = torch.where(mask, prior, 0.0)
    matrix = damped(hessian, damping)
    gradient = torch.where(mask, cross - prior @ hessian, 0.0)
    supports, owner = torch.unique(mask, dim=0, return_inverse=True)
    cost = float((supports.sum(1).double() ** 3).sum()) / 3
    if cost > EXACT_FLOPS:
        return prior + _iterate(gradient, matrix, mask)
    change = torch.zeros_like(prior)
    for number, support in enumerate(supports):
        kept, rows = support.nonzero().squeeze(1), (owner == number).nonzero()
        if len(kept):
            factor = torch.linalg.cholesky(matrix[kept[:, None], kept])
            change[rows, kept] = torch.cholesky_solve(gradient[rows, kept].mT, factor).mT
    return prior + change


def _iterate(gradient: Tensor, matrix: Tensor, mask: Tensor) -> Tensor:
    """Conjugate gradients for all rows at once, preconditioned by the diagonal.

    Every step lowers the error, so that stopping early does no harm.
    """
    weights = 1 / matrix.diagonal()
    change, residual = torch.zeros_like(gradient), gradient.clone()
    scaled = residual * weights
    direction = scaled.clone()
    size = (residual * scaled).sum(1)
    goal = size * TOLERANCE**2
    for _ in range(_ITERATIONS):
        if bool((size <= goal).all()):
            break
        image = torch.where(mask, direction @ matrix, 0.0)
        curvature = (direction * image).sum(1)
        step = torch.where(curvature > 0, size / curvature, 0.0)[:, None]
        change += step * direction
        residual -= step * image
        scaled = residual * weights
        new = (residual * scaled).sum(1)
        direction = scaled + torch.where(size > 0, new / size, 0.0)[:, None] * direction
        size = new
    return change
