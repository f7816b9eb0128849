"""How much a candidate is expected to improve on the best so far: EI and its logarithm.

EI is that of Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture
Compression", ICLR 2019, section 3.2. Its logarithm stays finite, with a usable gradient, where EI
itself is zero in floating point; the three regimes are those of Ament, Daulton, Eriksson, Balandat,
Bakshy, "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_HALF_LOG_HALF_PI = 0.5 * math.log(math.pi / 2)
# From here on the asymptotic series, to z^-4, is exact in float64, and the regime above it is not.
_FAR = -1e3
# A candidate whose reward is known (the teacher: its exact factor is 0) still has a logarithm.
_LEAST_STD = 1e-100


def expected_improvement(mean: Tensor, std: Tensor, best: Tensor) -> Tensor:
    """EI of maximising a normal variable: `(mean - best) Phi(z) + std phi(z)`.

    Args:
        mean: Float64 of any shape.
        std: Of the same shape, in the same unit, not negative.
        best: What is to be improved on, in the same unit; broadcast.

    Returns:
        In the same unit, never negative. Of a standard deviation of 0 it is the plain improvement.
    """
    # The sum itself cancels below the best: at z = -20 it is wrong by a factor of 400.
    return log_expected_improvement(mean, std, best).exp()


def log_expected_improvement(mean: Tensor, std: Tensor, best: Tensor) -> Tensor:
    """The logarithm of EI, finite for every finite z.

    Args:
        mean: Float64 of any shape.
        std: Of the same shape, in the same unit, not negative.
        best: What is to be improved on, in the same unit; broadcast.

    Returns:
        Log of the unit, of the broadcast shape.
    """
    safe = std.clamp_min(_LEAST_STD)
    return safe.log() + log_improvement((mean - best) / safe)


def log_improvement(z: Tensor) -> Tensor:
    """`log(phi(z) + z Phi(z))`, the log-EI of a standard normal variable, without cancellation.

    Args:
        z: Standard deviations above the best; float64 of any shape.

    Returns:
        Of the same shape. Value and gradient are finite down to about -1e150.
    """
    # Every regime is computed on numbers of its own, so that no infinite gradient of another one
    # is multiplied by zero.
    near, middle, far = z > -1, (z <= -1) & (z > _FAR), z <= _FAR
    high = torch.where(near, z, 0.0)
    mid = torch.where(middle, z, -2.0)
    low = torch.where(far, z, 2 * _FAR)
    h_high = torch.log(
        torch.exp(-0.5 * high * high - _HALF_LOG_TWO_PI) + high * torch.special.ndtr(high)
    )
    tail = torch.log(torch.special.erfcx(-mid / math.sqrt(2)) * mid.abs()) + _HALF_LOG_HALF_PI
    # The tail lies between -0.43 and 0, where this is exact.
    h_mid = -0.5 * mid * mid - _HALF_LOG_TWO_PI + torch.log(-torch.expm1(tail))
    square = low * low
    series = torch.log1p((15 / square - 3) / square)
    h_low = -0.5 * square - _HALF_LOG_TWO_PI - square.log() + series
    return torch.where(near, h_high, torch.where(far, h_low, h_mid))
