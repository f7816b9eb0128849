"""Tokens: what an encoder reads of an architecture, one row of numbers for each of its layers.

The idea is that of Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture
Compression", ICLR 2019, section 3.1. What differs: a token is a compute unit together with its norm
and activation, numbers are scaled to about [-1, 1], and links are told by logarithmic distance, so
that depth has no limit. A removed layer keeps its token, so all students of a teacher have as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from passes.architecture.sketch import Sketch

LAYOUT_VERSION = 1
"""Changes with every change of the columns: encoders of another version must not read tokens."""

KINDS = (
    "conv",
    "depthwise",
    "grouped",
    "linear",
    "attention",
    "norm",
    "act",
    "pool",
    "cat",
    "other",
    "removed",
)
"""Columns of the kind; one that is not here is told as "other"."""

# Links of distance 1, 2, 3, 4, 5-6, 7-8, 9-12, ..., and everything beyond 64.
_BUCKET_ENDS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
_BUCKETS = len(_BUCKET_ENDS) + 1
_SCALARS = 21
FEATURES = len(KINDS) + _SCALARS + 2 * _BUCKETS
"""Numbers in a token."""

_KIND_COLUMN = {kind: column for column, kind in enumerate(KINDS)}
_OTHER, _REMOVED = _KIND_COLUMN["other"], _KIND_COLUMN["removed"]
_KINDS_OF = attrgetter("kind", "removed")
_NUMBERS_OF = attrgetter(
    "kernel",
    "stride",
    "dilation",
    "groups",
    "in_width",
    "out_width",
    "params",
    "macs",
    "area",
    "has_norm",
    "has_act",
)
_LINKS_SCALE = 4.0


class Tokenizer:
    """Makes the tokens of a teacher's students.

    The columns are the kind (one-hot), log kernel, stride, dilation and groups, four widths (in and
    out, as logarithms against the widest of the teacher and as shares of the teacher's own), log
    parameters, MACs and output area against the teacher's totals, norm, activation, links in and
    out, added skips in and out, the depth, three ones that stand for bits, nonzeros and rank, and
    the distances of links in and out (multi-hot).

    Args:
        teacher: What students are made from.
    """

    def __init__(self, teacher: Sketch) -> None:
        numbers = _numbers(teacher)
        self._count = len(teacher.layers)
        self._widths = np.maximum(numbers[:, 4:6], 1)
        widest = np.log2(max(float(numbers[:, 4:6].max(initial=2)), 2.0))
        totals = (numbers[:, 6].sum(), numbers[:, 7].sum(), numbers[:, 8].max(initial=0))
        self._log2_scales = np.array([4, 4, 4, 8, widest, widest])
        self._log1p_scales = np.log1p(np.maximum(totals, 1))

    def __call__(self, sketch: Sketch) -> NDArray[np.float32]:
        """The tokens of a student.

        Args:
            sketch: With the layers of the teacher, in their order.

        Returns:
            Float32 `(layers, FEATURES)`; equal sketches give equal bits.

        Raises:
            ArgumentError: The teacher has other layers.
        """
        count = len(sketch.layers)
        if count != self._count:
            raise ArgumentError(
                f"{count} layers are not those of a teacher with {self._count}", where="sketch"
            )
        found = np.zeros((count, FEATURES), dtype=np.float32)
        found[np.arange(count), _kind_columns(sketch)] = 1
        own = _numbers(sketch)
        scalars = found[:, len(KINDS) : len(KINDS) + _SCALARS]
        scalars[:, 0:6] = np.log2(np.maximum(own[:, 0:6], 1)) / self._log2_scales
        scalars[:, 6:8] = own[:, 4:6] / self._widths
        scalars[:, 8:11] = np.log1p(own[:, 6:9]) / self._log1p_scales
        scalars[:, 11:13] = own[:, 9:11]
        edges, skips = _pairs(sketch.edges), _pairs(sketch.skips)
        scalars[:, 13:17] = np.hstack([_degrees(edges, count), _degrees(skips, count)])
        scalars[:, 13:17] /= _LINKS_SCALE
        scalars[:, 17] = _depths(sketch.edges, count)
        scalars[:, 18:] = 1
        links = found[:, len(KINDS) + _SCALARS :]
        buckets = np.searchsorted(_BUCKET_ENDS, edges[:, 1] - edges[:, 0])
        links[edges[:, 1], buckets] = 1
        links[edges[:, 0], _BUCKETS + buckets] = 1
        return found


def tokens(sketch: Sketch, teacher: Sketch) -> NDArray[np.float32]:
    """The tokens of one student; a `Tokenizer` makes those of many faster.

    Raises:
        ArgumentError: The teacher has other layers.
    """
    return Tokenizer(teacher)(sketch)


def _kind_columns(sketch: Sketch) -> NDArray[np.int64]:
    return np.array(
        [
            _REMOVED if removed else _KIND_COLUMN.get(kind, _OTHER)
            for kind, removed in map(_KINDS_OF, sketch.layers)
        ],
        dtype=np.int64,
    )


def _numbers(sketch: Sketch) -> NDArray[np.float64]:
    found = np.array(list(map(_NUMBERS_OF, sketch.layers)), dtype=np.float64)
    return found.reshape(-1, 11)


def _pairs(edges: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def _degrees(edges: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Links in and out of every layer, `(layers, 2)`."""
    ends = [np.bincount(edges[:, column], minlength=count) for column in (1, 0)]
    return np.stack(ends, axis=1)


def _depths(edges: Sequence[tuple[int, int]], count: int) -> list[float]:
    """The longest path that ends in each layer, as a share of the longest of all."""
    depths = [0] * count
    # Links point forwards, so a layer is final before its first link out is met.
    for source, target in sorted(edges):
        if depths[source] >= depths[target]:
            depths[target] = depths[source] + 1
    longest = max(1, *depths, 1)
    return [depth / longest for depth in depths]
