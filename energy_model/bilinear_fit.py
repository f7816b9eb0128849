"""Fitting a bilinear cost model to measurements, and drawing the networks to measure.

Source: Yang, Zhu, Liu, "ECC: Platform-Independent Energy-Constrained Deep Neural Network
Compression via a Bilinear Regression Model", CVPR 2019. Unlike theirs, the fit is nonnegative,
minimises relative errors, and does not regularise the intercept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.bilinear import (
    BilinearModel,
    Term,
    Widths,
    check_form,
    check_full_widths,
    is_finite,
    width_products,
)
from energy_model.errors import ArgumentError
from energy_model.nnls import nnls

INTERCEPT = "the intercept"
# Below these, a singular value and a share in a dependency are what rounding leaves of 0.
_RANK_TOLERANCE, _SHARE_TOLERANCE = 1e-10, 1e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model, and how well it predicts measurements that it was not fitted to.

    Attributes:
        model: The model.
        mean_error: Mean over the held-out samples of |predicted - measured| / measured.
        worst_error: Largest of these relative errors.
        held_out: Indices of the held-out samples, ascending.
        fitted: Number of the samples that the coefficients come from.
    """

    model: BilinearModel
    mean_error: float
    worst_error: float
    held_out: tuple[int, ...]
    fitted: int

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "model": self.model.to_dict(),
            "mean_error": self.mean_error,
            "worst_error": self.worst_error,
            "held_out": list(self.held_out),
            "fitted": self.fitted,
        }


def random_widths(
    full_widths: Mapping[str, int], count: int, generator: np.random.Generator
) -> list[dict[str, int]]:
    """Networks to measure: every width a uniform integer from 1 to its full value.

    Args:
        full_widths: Each variable's full width, channels.
        count: How many networks.
        generator: Source of the randomness.

    Raises:
        ArgumentError: `count` is below 1, or a full width is no count.
    """
    check_full_widths(full_widths)
    if count < 1:
        raise ArgumentError(f"{count} networks", where="count", remedy="Ask for at least 1.")
    columns = [generator.integers(1, full + 1, size=count) for full in full_widths.values()]
    return [
        {name: int(column[row]) for name, column in zip(full_widths, columns, strict=True)}
        for row in range(count)
    ]


def fit_bilinear(
    terms: Sequence[Term],
    full_widths: Mapping[str, int],
    samples: Sequence[Widths],
    values: Sequence[float],
    *,
    unit: str,
    nonnegative: bool = True,
    relative: bool = True,
    ridge: float = 0.0,
    held_out: float = 0.2,
    seed: int | np.random.Generator = 0,
) -> Fit:
    """Fit a bilinear model to measurements by least squares.

    Minimises mean(r^2) + ridge * sum of (a_u / M)^2 over the layers, the intercept left out. M is
    the mean of the fitted values; the residual r is (predicted - measured) / measured, or with
    `relative=False` over M. Both parts have no unit: measured in mJ or in J, the model is the same.

    Args:
        terms: One per layer.
        full_widths: Each variable's full width, channels.
        samples: The widths of every measured network.
        values: What was measured of each, in `unit`, above 0.
        unit: E.g. `"J"` or `"s"`.
        nonnegative: Whether intercept and coefficients must be at least 0, as costs are.
        relative: Whether errors count in proportion to the measured value.
        ridge: Weight of the regularisation. Above 0 it also decides between layers that the
            samples cannot tell apart: they share their cost equally.
        held_out: Share of the samples kept apart to measure the error, above 0 and below 1.
        seed: Of the split, a seed or a generator.

    Raises:
        ArgumentError: Unknown or missing names, a measurement that is not a positive number,
            too few samples, or terms that the samples cannot tell apart (they are named).
    """
    terms = tuple(terms)
    check_form(terms, full_widths)
    measured = _checked_values(values, len(samples))
    _check_ridge(ridge)
    products = width_products(terms, full_widths, samples)
    fitted, kept_apart = _split(len(measured), held_out, seed)
    design = np.column_stack([np.ones(len(fitted)), products[fitted]])
    if ridge == 0:
        _check_rank(design, [INTERCEPT, *(term.layer for term in terms)])
    solution = _solve(design, measured[fitted], nonnegative, relative, ridge)
    intercept, *coefficients = map(float, solution)
    model = BilinearModel(intercept, tuple(coefficients), terms, full_widths, unit)
    predicted = intercept + products[kept_apart] @ solution[1:]
    errors = np.abs(predicted / measured[kept_apart] - 1)
    return Fit(
        model,
        mean_error=float(errors.mean()),
        worst_error=float(errors.max()),
        held_out=tuple(map(int, kept_apart)),
        fitted=len(fitted),
    )


def _solve(
    design: NDArray[np.float64],
    measured: NDArray[np.float64],
    nonnegative: bool,
    relative: bool,
    ridge: float,
) -> NDArray[np.float64]:
    """Intercept and coefficients in the unit of `measured`, shape `(1 + layers,)`."""
    scale = float(measured.mean())
    target = measured / scale
    weights = 1 / target if relative else np.ones(len(target))
    matrix, target = design * weights[:, None], target * weights
    if ridge > 0:
        penalty = math.sqrt(ridge * len(target)) * np.eye(design.shape[1])[1:]
        matrix = np.vstack([matrix, penalty])
        target = np.concatenate([target, np.zeros(len(penalty))])
    if nonnegative:
        solution = nnls(matrix, target)
    else:
        solution = np.asarray(np.linalg.lstsq(matrix, target, rcond=None)[0], dtype=np.float64)
    return scale * solution


def _split(
    count: int, held_out: float, seed: int | np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to fit and indices held out, both ascending and at least one."""
    if not is_finite(held_out) or not 0 < held_out < 1:
        raise ArgumentError(
            f"a share of {held_out!r} cannot be held out",
            where="held_out",
            remedy="Give a number between 0 and 1, e.g. 0.2.",
        )
    if isinstance(seed, Integral) and seed < 0:
        raise ArgumentError(f"the seed is {seed}", where="seed", remedy="Seeds start at 0.")
    if count < 2:
        raise ArgumentError(
            f"{count} samples cannot be split into a fitted and a held-out part",
            where="samples",
            remedy="Measure more networks, see random_widths.",
        )
    order = np.random.default_rng(seed).permutation(count)
    kept_apart = min(count - 1, max(1, round(count * held_out)))
    return np.sort(order[kept_apart:]), np.sort(order[:kept_apart])


def _check_rank(design: NDArray[np.float64], names: Sequence[str]) -> None:
    """Raise unless every column has an effect of its own; name those that have not."""
    if len(design) < len(names):
        raise ArgumentError(
            f"{len(design)} fitted samples cannot determine {len(names)} coefficients: "
            f"{', '.join(names)}",
            where="samples",
            remedy="Measure more networks, several times as many as coefficients, or give a ridge.",
        )
    _, singular, rows = np.linalg.svd(design / np.linalg.norm(design, axis=0), full_matrices=False)
    blind = rows[singular <= _RANK_TOLERANCE * singular[0]]
    groups = _connected(np.abs(blind.T @ blind) > _SHARE_TOLERANCE)
    if groups:
        listed = "; ".join(" and ".join(names[index] for index in group) for group in groups)
        raise ArgumentError(
            f"the samples cannot tell these terms apart: {listed}",
            where="samples",
            remedy="Vary their widths independently. Where the network ties them, keep one term "
            "for all of them, or give a ridge, which shares their cost equally.",
        )


def _connected(related: NDArray[np.bool_]) -> list[list[int]]:
    """Groups of columns that are related, directly or through others; unrelated ones left out."""
    groups: list[list[int]] = []
    seen: set[int] = set()
    for start in np.flatnonzero(related.diagonal()):
        group, waiting = set[int](), [int(start)]
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                group.add(index)
                waiting.extend(map(int, np.flatnonzero(related[index])))
        if group:
            groups.append(sorted(group))
    return groups


def _checked_values(values: Sequence[float], samples: int) -> NDArray[np.float64]:
    if len(values) != samples:
        raise ArgumentError(
            f"{len(values)} measured values for {samples} samples",
            where="values",
            remedy="Give one value per sample, in the same order.",
        )
    for number, value in enumerate(values):
        if not is_finite(value) or value <= 0:
            raise ArgumentError(
                f"measurement {number} is {value!r}",
                where="values",
                remedy="A cost per inference is a number above 0: relative errors have no meaning "
                "otherwise. Leave out samples that could not be measured.",
            )
    return np.array(values, dtype=np.float64)


def _check_ridge(ridge: float) -> None:
    if not is_finite(ridge) or ridge < 0:
        raise ArgumentError(
            f"the weight is {ridge!r}", where="ridge", remedy="Give a number of at least 0."
        )
