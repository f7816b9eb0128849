"""Features made by hand: what a surrogate without a learned embedding reads of an architecture.

They are the baseline that a learned embedding has to beat: four numbers for each of four sections
of the network, and the number of added skips.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from passes.architecture.sketch import Layer, Sketch

SECTIONS = 4
FEATURES = 4 * SECTIONS + 1
"""Numbers in the features of an architecture."""

Section = tuple[int, int]
"""The first layer, and the one after the last."""


def sections(teacher: Sketch) -> tuple[Section, ...]:
    """Divide a network where its spatial size changes.

    Runs of one output area are taken; of more than four the two neighbours that are smallest
    together become one, of fewer the longest is halved.

    Args:
        teacher: The network before anything is removed.

    Returns:
        Four ranges that cover all layers in their order; empty ones only in a network of fewer
        than four layers.
    """
    areas = [layer.area for layer in teacher.layers]
    starts = [at for at in range(len(areas)) if at == 0 or areas[at] != areas[at - 1]]
    found = list(zip(starts, [*starts[1:], len(areas)], strict=True))
    while len(found) > SECTIONS:
        at = min(range(len(found) - 1), key=lambda i: found[i + 1][1] - found[i][0])
        found[at : at + 2] = [(found[at][0], found[at + 1][1])]
    while found and len(found) < SECTIONS:
        at = max(range(len(found)), key=lambda i: found[i][1] - found[i][0])
        start, stop = found[at]
        middle = (start + stop + 1) // 2
        found[at : at + 1] = [(start, middle), (middle, stop)]
    return tuple(found)


def hand_features(
    sketch: Sketch, teacher: Sketch, parts: tuple[Section, ...]
) -> NDArray[np.float64]:
    """Seventeen numbers that describe an architecture.

    For each section: the mean logarithm of the widths that are left against the teacher's, and the
    shares of weight layers, norms and activations that are left; at the end the logarithm of one
    and the number of added skips.

    Args:
        sketch: The architecture.
        teacher: What it was made from, with the same layers in the same order.
        parts: The sections of the teacher.

    Returns:
        Float64 `(FEATURES,)`.

    Raises:
        ArgumentError: The teacher has other layers.
    """
    if len(sketch.layers) != len(teacher.layers):
        raise ArgumentError(
            f"{len(sketch.layers)} layers are not those of a teacher with {len(teacher.layers)}",
            where="sketch",
        )
    found: list[float] = []
    for start, stop in parts:
        pairs = list(zip(sketch.layers[start:stop], teacher.layers[start:stop], strict=True))
        weighted = [(own, whole) for own, whole in pairs if whole.macs > 0]
        found += [
            # A weight layer may be gone, and its norm or activation still have a width.
            _mean([_log_share(own, whole) for own, whole in weighted if own.out_width > 0]),
            _mean([float(own.macs > 0) for own, _ in weighted]),
            _mean([float(own.has_norm) for own, whole in pairs if whole.has_norm]),
            _mean([float(own.has_act) for own, whole in pairs if whole.has_act]),
        ]
    found += [0.0] * (4 * (SECTIONS - len(parts)))
    return np.array([*found, math.log1p(len(sketch.skips))])


def _log_share(own: Layer, whole: Layer) -> float:
    return math.log1p(own.out_width) / math.log1p(max(whole.out_width, 1))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
