"""The best weights of one layer, given moments of its inputs and wanted outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passes.quantize.encoding import Encoding
from passes.quantize.fit import fit_encoding
from passes.reconstruct.codes import fit_codes
from passes.reconstruct.least_squares import damped, fit_masked
from passes.reconstruct.moments import Moments


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """New weights of a layer.

    Attributes:
        weight: Of the shape and type of the old.
        offset: What is to be added to the outputs, float64 `(groups * rows,)`.
        encoding: Its grid; `None` without one.
        before: Mean square of the error of the old weight, relative to that of the outputs.
        after: That of the new one.
    """

    weight: Tensor
    offset: Tensor
    encoding: Encoding | None
    before: float
    after: float


def fit_layer(
    weight: Tensor, prior: Tensor, moments: Moments, encoding: Encoding | None, damping: float
) -> Fit:
    """Refit a layer: its zeros stay; levels stay levels, of a grid whose scales are fitted anew.

    No output has a larger error than before, on the data of the moments.

    Args:
        weight: The weight as it is, `(groups * rows, ...)`; its zeros are a mask.
        prior: What the fitted weights stay near, of the same shape.
        moments: Of the inputs, and of the outputs that are wanted.
        encoding: Its grid, one scale or more for each row; `None` without one.
        damping: See `fit_masked`.
    """
    shape = moments.yx.shape
    old, near = weight.double().reshape(shape), prior.double().reshape(shape)
    weights, scales = [], []
    for group in range(shape[0]):
        cross, hessian, mask = moments.yx[group], moments.xx[group], old[group] != 0
        fitted = fit_masked(cross, hessian, mask, near[group], damping)
        if encoding is not None:
            # Errors of single weights count as they do where inputs are not correlated.
            columns = damped(hessian, damping).diagonal()
            grid = fit_encoding(fitted, encoding.bits, block=encoding.block, column_weights=columns)
            fitted = fit_codes(fitted, hessian, grid, mask, damping)
            scales.append(grid.scale)
        weights.append(fitted)
    # As it will be stored: what rounding makes worse is not taken.
    new = torch.stack(weights).to(weight.dtype).double()
    before, after = squared_error(old, moments), squared_error(new, moments)
    better = after < before
    new = torch.where(better[..., None], new, old)
    if encoding is not None:
        rows = better.reshape(-1, 1).to(encoding.scale.device)
        encoding = replace(encoding, scale=torch.where(rows, torch.cat(scales), encoding.scale))
    offset = moments.mean_y - (new @ moments.mean_x[..., None]).squeeze(2)
    total = float(moments.yy.sum()) or 1.0
    return Fit(
        new.to(weight.dtype).reshape(weight.shape),
        offset.reshape(-1),
        encoding,
        float(before.sum()) / total,
        float(torch.minimum(after, before).sum()) / total,
    )


def squared_error(weight: Tensor, moments: Moments) -> Tensor:
    """Mean square of every output's error: `(groups, rows)` for a weight `(groups, rows, cols)`."""
    image = weight @ moments.xx - 2 * moments.yx
    return (image * weight).sum(2) + moments.yy
