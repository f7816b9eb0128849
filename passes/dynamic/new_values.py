"""Values of weights that have just grown, where they are not zero."""

from __future__ import annotations

import math

from torch import Tensor

from passes.dynamic.random_keys import normals
from passes.dynamic.start import SparseShape


def normal_values(shape: SparseShape, key: int, like: Tensor) -> Tensor:
    """N(0, 2 / (outputs x kernel)), for linear layers N(0, 1 / inputs).

    Mostafa and Wang, ICML 2019, option "big new weights"; theirs also draws for cells that do not
    grow.

    Args:
        shape: Of the whole weight.
        key: Of the stream.
        like: Boolean: one value for each of its true elements.

    Returns:
        float32, flat, in the order of these elements.
    """
    outputs, inputs, *kernel = shape.shape
    variance = 2 / (outputs * math.prod(kernel)) if kernel else 1 / inputs
    return normals(key, int(like.sum()), like.device).float() * math.sqrt(variance)
