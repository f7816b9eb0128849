"""Fitting a latency model to measured networks, and measuring how well it predicts others.

All fits are nonnegative and minimise relative deviations, not their squares: on a machine with
other work some measurements are far too long, and these must not move the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_model.bilinear import is_finite
from energy_model.errors import ArgumentError
from energy_model.latency import HeldOut, LatencyModel, LayerTime, LayerWidths
from energy_model.nnls import nnls

_FOLDS = 5
# Channels that a runtime may compute together.
_STEPS = (1, 4, 8, 16)
# Another form is taken where its error is this part of a simpler one's: it repeats the noise too.
_PAYS = 0.9
# Rounds of reweighting, and the relative deviation below which weights grow no further.
_ROUNDS, _SMALL = 6, 1e-3

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimedNetwork:
    """One measured network.

    Attributes:
        widths: Input and output channels of every layer.
        layers: Seconds of every layer in a profile.
        seconds: Of one inference of the whole network, without a profiler.
    """

    widths: LayerWidths = field(hash=False)
    layers: Mapping[str, float] = field(hash=False)
    seconds: float


class Form(NamedTuple):
    """How the time of a layer is written.

    Attributes:
        step: Channels in a vector; 1 for none.
        table: Whether it is looked up.
    """

    step: int = 1
    table: bool = False


# From the simplest to the richest.
_FORMS = tuple(Form(step, table) for table in (False, True) for step in _STEPS)


def fit_latency(
    networks: Sequence[TimedNetwork], *, about: Mapping[str, Any] | None = None, seed: int = 0
) -> LatencyModel:
    """Fit a latency model.

    For every layer the bilinear time, with and without vectors, and the looked-up one are compared
    on measurements that they were not made of, and the best is taken. In the same way the error of
    the whole is measured, the forms of the layers being kept.

    Args:
        networks: At least two. Layers that one of them does not have are part of the rest.
        about: Machine, runtime, threads and batch.
        seed: Of the splits into fitted and held-out networks.

    Raises:
        ArgumentError: Too few networks, no common layer, or a time that is not a positive number.
    """
    forms = {name: _best_form(*_times(networks, name)) for name in _common_layers(networks)}
    order = np.random.default_rng(seed).permutation(len(networks))
    errors: list[float] = []
    for held in _folds(order):
        apart = {int(index) for index in held}
        model = _fitted([n for i, n in enumerate(networks) if i not in apart], forms)
        errors += [
            abs(model.predict(networks[i].widths) / networks[i].seconds - 1) for i in sorted(apart)
        ]
    found = HeldOut(float(np.median(errors)), float(max(errors)), len(errors))
    return replace(_fitted(networks, forms), held_out=found, about=dict(about or {}))


def _common_layers(networks: Sequence[TimedNetwork]) -> list[str]:
    if len(networks) < 2:
        raise ArgumentError(
            f"{len(networks)} networks",
            where="networks",
            remedy="Measure at least two, better some dozens.",
        )
    for number, network in enumerate(networks):
        times = (network.seconds, *network.layers.values())
        if not all(is_finite(t) and t >= 0 for t in times) or network.seconds == 0:
            raise ArgumentError(
                "a time is not a positive number",
                where=f"network {number}",
                remedy="Leave out networks that could not be measured.",
            )
    first = networks[0]
    names = [n for n in first.layers if all(n in x.layers and n in x.widths for x in networks)]
    if not names:
        raise ArgumentError(
            "no layer was measured in all networks",
            where="networks",
            remedy="Name the layers of the times as those of the widths.",
        )
    return names


def _folds(order: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Indices to hold out, each once."""
    count = min(_FOLDS, len(order))
    return (order[start::count] for start in range(count))


def _fitted(networks: Sequence[TimedNetwork], forms: Mapping[str, Form]) -> LatencyModel:
    layers = {name: _fit_form(form, *_times(networks, name)) for name, form in forms.items()}
    sums = [sum(t.seconds(*x.widths[n]) for n, t in layers.items()) for x in networks]
    design = np.column_stack([np.ones(len(sums)), sums])
    rest, scale = _least_deviations(design, np.array([n.seconds for n in networks]))
    return LatencyModel(layers, float(rest), float(scale))


def _times(networks: Sequence[TimedNetwork], name: str) -> tuple[NDArray[np.int64], _Floats]:
    """Widths `(networks, 2)` and seconds of a layer; a time of 0 is no measurement."""
    widths = np.array([network.widths[name] for network in networks], dtype=np.int64)
    seconds = np.array([network.layers[name] for network in networks])
    return widths[seconds > 0], seconds[seconds > 0]


def fit_layer(widths: NDArray[np.int64], seconds: _Floats) -> LayerTime:
    """The time of one layer, in the form that best predicts times that it was not fitted to.

    A step of vectors, or a table, is only taken where it predicts clearly better.

    Args:
        widths: Input and output channels, `(measurements, 2)`.
        seconds: Measured times, `(measurements,)`, above 0.
    """
    return _fit_form(_best_form(widths, seconds), widths, seconds)


def _best_form(widths: NDArray[np.int64], seconds: _Floats) -> Form:
    if len(seconds) < _FOLDS:
        return _FORMS[0]
    errors: dict[Form, list[float]] = {form: [] for form in _FORMS}
    for held in _folds(np.random.default_rng(0).permutation(len(seconds))):
        fitted = np.setdiff1d(np.arange(len(seconds)), held)
        for step in _STEPS:
            plain = _bilinear(step, widths[fitted], seconds[fitted])
            for form in (Form(step), Form(step, table=True)):
                time = _looked_up(plain, widths[fitted], seconds[fitted]) if form.table else plain
                found = [time.seconds(int(i), int(o)) for i, o in widths[held]]
                errors[form] += list(np.abs(found / seconds[held] - 1))
    best, least = _FORMS[0], float(np.median(errors[_FORMS[0]]))
    for form in _FORMS[1:]:
        error = float(np.median(errors[form]))
        if error < _PAYS * least - _SMALL:
            best, least = form, error
    return best


def _fit_form(form: Form, widths: NDArray[np.int64], seconds: _Floats) -> LayerTime:
    if not len(seconds):
        return LayerTime((0.0, 0.0, 0.0, 0.0))  # fused away
    time = _bilinear(form.step, widths, seconds)
    return _looked_up(time, widths, seconds) if form.table else time


def _bilinear(step: int, widths: NDArray[np.int64], seconds: _Floats) -> LayerTime:
    inputs, outputs = widths.astype(np.float64).T
    own = np.column_stack([np.ones(len(seconds)), inputs, outputs, inputs * outputs])
    partial = [own * (widths[:, [side]] % step != 0) for side in (0, 1)] if step > 1 else []
    found = _least_deviations(np.hstack([own, *partial]), seconds).reshape(-1, 4)
    parts = [(a, b, c, d) for a, b, c, d in found.tolist()]
    return LayerTime(parts[0], step, parts[1], parts[2]) if step > 1 else LayerTime(parts[0])


def _looked_up(trend: LayerTime, widths: NDArray[np.int64], seconds: _Floats) -> LayerTime:
    """The same with a table; of widths that were measured more than once the median."""
    pairs, which = np.unique(widths, axis=0, return_inverse=True)
    medians = [float(np.median(seconds[which == number])) for number in range(len(pairs))]
    points = tuple((int(i), int(o), t) for (i, o), t in zip(pairs, medians, strict=True))
    if not any(trend.coefficients) or min(trend.seconds(i, o) for i, o, _ in points) <= 0:
        return trend  # a table corrects by factors, and there is nothing to correct
    return replace(trend, points=points)


def _least_deviations(design: _Floats, target: _Floats) -> _Floats:
    """The x >= 0 with the least sum of |design x - target| / target, by reweighted least squares.

    Args:
        design: `(rows, columns)`.
        target: `(rows,)`, above 0.
    """
    relative = design / target[:, None]
    weights = np.ones(len(target))
    solution = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        solution = nnls(relative * weights[:, None], weights)
        deviations = np.abs(relative @ solution - 1)
        weights = np.maximum(deviations, _SMALL) ** -0.5
    return solution
