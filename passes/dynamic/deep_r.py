"""DeepR: connections walk at random, and are rewired where their sign would change.

Bellec et al., ICLR 2018. Every possible connection has a sign s that is drawn once and a parameter
theta; it is active while theta >= 0, and its weight is then w = s theta. After every plain gradient
step on the loss E of the active ones,

    theta <- theta - eta dE/dtheta - eta alpha + sqrt(2 eta T) nu,    nu ~ N(0, 1)

those with theta < 0 become dormant, and as many dormant ones, drawn at random, start at theta = 0.
The optimizer does the gradient step on w, since s dE/dw = dE/dtheta; the rest is here, on w.

The variant of Mostafa and Wang, ICML 2019, adds the noise to the gradient, so that it is scaled by
the learning rate and enters momentum, and takes for the sign of a connection that of its first
update. In both, `drop.flipped` finds what becomes dormant: a sign of 0, of a new connection without
an update, never does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.host_keys import host_halves, host_keys
from passes.dynamic.random_keys import keys_at

_WORD = 1 << 32


def signs(key: int, n: int, device: torch.device | str | None = None) -> Tensor:
    """A random sign for each of `n` cells, always the same for the same key.

    Returns:
        float32 of shape `(n,)`, each -1 or 1 with equal probability.
    """
    return signs_at(key, torch.arange(n, device=device))


def signs_at(key: int, cells: Tensor) -> Tensor:
    """The signs of some cells.

    Args:
        key: From `random_keys.key_of`.
        cells: int64 indices of any shape.

    Returns:
        float32 of that shape.
    """
    return ((keys_at(key, cells) & 1) * 2 - 1).to(torch.float32)


def normal_pairs_at(key: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers of each of some cells, whatever other cells are asked for.

    By Box and Muller (1958) in float64, like `random_keys.normals`; there the two are neighbours,
    and the noise of a connection would depend on how many precede it.

    Args:
        key: From `random_keys.key_of`.
        cells: int64 of shape `(n,)`, places in the stream.

    Returns:
        Two float32 tensors of shape `(n,)`, independent of each other.
    """
    if cells.device.type == "cpu":
        high, low = host_halves(host_keys(key, cells.numpy()))
        above_zero, angle = torch.from_numpy(high), torch.from_numpy(low)
    else:
        keys = keys_at(key, cells)
        above_zero = ((keys >> 32) & (_WORD - 1)).to(torch.float64)
        angle = (keys & (_WORD - 1)).to(torch.float64)
    above_zero.add_(1).mul_(1 / _WORD)  # for the logarithm
    radius, angle = above_zero.log_().mul_(-2).sqrt_(), angle.mul_(2 * math.pi / _WORD)
    first = (radius * angle.cos()).to(torch.float32)
    return first, radius.mul_(angle.sin_()).to(torch.float32)


def noise_size(eta: float, temperature: float) -> float:
    """Standard deviation of the noise of one step, `sqrt(2 eta T)`.

    Args:
        eta: Learning rate, not negative.
        temperature: T, not negative.

    Raises:
        ArgumentError: One of them is negative or not finite.
    """
    for name, value in (("eta", eta), ("temperature", temperature)):
        if not (math.isfinite(value) and value >= 0):
            raise ArgumentError(
                f"{value!r} is not allowed",
                where=f"noise_size.{name}",
                remedy="Give a number from 0.",
            )
    return math.sqrt(2 * eta * temperature)


def temperature_of(sigma: float, eta: float) -> float:
    """The temperature whose noise is `eta N(0, sigma)`, as the authors' script writes it."""
    return eta * sigma**2 / 2


def walked(
    weight: Tensor,
    sign: Tensor,
    active: Tensor | None = None,
    *,
    eta: float,
    l1: float,
    temperature: float,
    normals: Tensor,
) -> Tensor:
    """Weights after the part of a step that is no gradient: shrinkage and noise on theta.

    Args:
        weight: After the optimizer's step, shape `(n,)`; inactive ones are zero.
        sign: Of every connection, -1 or 1, shape `(n,)`.
        active: Boolean, shape `(n,)`; `None`: all are.
        eta: Learning rate.
        l1: alpha, the strength of the L1 penalty.
        temperature: T.
        normals: nu, standard normal numbers of shape `(n,)`.

    Returns:
        New weights; those of inactive connections as they were. Active ones may have crossed zero.
    """
    change = noise_size(eta, temperature) * normals.to(weight) - eta * l1
    moved = torch.addcmul(weight, sign.to(weight), change)
    return moved if active is None else torch.where(active, moved, weight)


def noisy_gradient(
    gradient: Tensor,
    active: Tensor | None = None,
    *,
    eta: float,
    temperature: float,
    normals: Tensor,
) -> Tensor:
    """Gradient with noise at the active connections, for the variant of 2019.

    Args:
        gradient: dE/dw, shape `(n,)`.
        active: Boolean, shape `(n,)`; `None`: all are.
        eta: A constant of its own there, not the learning rate.
        temperature: T.
        normals: Standard normal numbers of shape `(n,)`.
    """
    noisy = gradient + noise_size(eta, temperature) * normals.to(gradient)
    return noisy if active is None else torch.where(active, noisy, gradient)


def first_update_signs(weight: Tensor, active: Tensor) -> Tensor:
    """Signs of the variant of 2019, to be taken after every rewiring.

    Args:
        weight: Shape `(n,)`.
        active: Boolean, shape `(n,)`.

    Returns:
        Signs of the active weights, 0 where a weight is zero or inactive; type of `weight`.
    """
    return torch.where(active, torch.sign(weight), torch.zeros_like(weight))
