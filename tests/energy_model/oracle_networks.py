"""The published-model oracles: parsing of their shapes and their half-empty supports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from energy_model.shapes import LayerShape

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "energy-oracle.json").read_text())
VARIANTS = ("dense", "w50", "x50", "w50x50")


def parse_shape(text: str) -> LayerShape:
    if found := re.fullmatch(r"fc (\d+)>(\d+)", text):
        return LayerShape.linear(int(found[1]), int(found[2]))
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)>(\d+) k(\d+)s(\d+)p(\d+)(?:g(\d+))?", text)
    assert found is not None, text
    c, h, w, d, k, s, p = map(int, found.groups()[:7])
    return LayerShape.conv(c, d, (k, k), (h, w), stride=s, padding=p, groups=int(found[8] or 1))


def every_other(*sizes: int) -> np.ndarray:
    """Support in which the odd flat indices, row-major, are zero."""
    return (np.arange(np.prod(sizes)) % 2 == 0).reshape(sizes)


def count_weights(shape: LayerShape, support: np.ndarray) -> np.ndarray:
    """Counts (in_channels, *kernel) of a weight's support (d, c/g, *kernel)."""
    grouped = support.reshape(shape.groups, shape.out_per_group, *support.shape[1:])
    return grouped.sum(axis=1, dtype=np.int64).reshape(shape.in_channels, *shape.kernel)


def variant_arguments(
    shape: LayerShape, variant: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weight counts and input support of an oracle's variant; fc inputs are never masked."""
    counts = inputs = None
    if "w50" in variant:
        per_group = shape.in_channels // shape.groups
        counts = count_weights(shape, every_other(shape.out_channels, per_group, *shape.kernel))
    if "x50" in variant and not shape.is_linear:
        inputs = every_other(shape.in_channels, *shape.input_size)
    return counts, inputs
