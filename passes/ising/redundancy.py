"""How far apart the kernels of a layer are: of two units at distance 0 one is redundant.

A unit is described by the Gaussian of its kernels over the input channels, two units are compared
by the Kullback-Leibler divergence of their Gaussians (H. Salehinejad, S. Valaee, ICASSP 2021,
arXiv:2102.05437: divergence within a layer as the sign of redundancy). Ours are the shrinkage of
the covariances, which makes every divergence finite, and a squashing by the layer's median, which
one odd filter cannot spoil.

    KL(i||j) = 1/2 [tr(Sj^-1 Si) + (mj - mi)' Sj^-1 (mj - mi) - k + ln det Sj - ln det Si]
    K_ij     = 1 - exp(-(KL(i||j) + KL(j||i)) / (2 median))

Complexity: `O(n^2 k^2)` for n units and kernels of k taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import ModelGraph
from passes.structure.groups import ChannelGroup, Member

SQUASHINGS = ("median", "max")
# Kernels of more taps get diagonal covariances: full ones would need k^2 numbers for each unit.
_FULL = 128
# The least variance of a unit, as a share of the layer's: units of zeros have none of their own.
_FLOOR = 1e-4
# Divergences below this many nats for each tap are rounding: the units are the same.
_ROUNDING = 1e-9
_CHUNK = 2**22


def gaussian_divergence(means: Tensor, covariances: Tensor) -> Tensor:
    """Divergence `KL(i||j)` of every pair of Gaussians, in nats.

    Args:
        means: float64 `(n, k)`.
        covariances: float64 `(n, k, k)`, positive definite; or `(n, k)`, the variances of taps that
            do not vary together.

    Returns:
        float64 `(n, n)`.

    Raises:
        PreconditionError: A covariance is not positive definite.
    """
    if covariances.dim() == 2:
        covariances = _positive(covariances, covariances > 0)
        whiten, logdet = covariances.rsqrt(), covariances.log().sum(1)
        trace = covariances @ whiten.square().T
    else:
        factors, failed = torch.linalg.cholesky_ex(covariances)
        factors = _positive(factors, failed == 0)
        whiten = torch.linalg.solve_triangular(
            factors, torch.eye(means.shape[1], dtype=means.dtype).expand_as(factors), upper=False
        )
        logdet = 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)
        trace = covariances.flatten(1) @ (whiten.mT @ whiten).flatten(1).T
    distance = _squared_distances(means, whiten)
    return (trace + distance - means.shape[1] + logdet[None, :] - logdet[:, None]) / 2


def _positive(values: Tensor, good: Tensor) -> Tensor:
    if not bool(good.all()):
        raise PreconditionError(
            "a covariance is not positive definite",
            where="kernel divergence",
            remedy="Look for NaN or infinite weights, or raise the shrinkage.",
        )
    return values


def _squared_distances(means: Tensor, whiten: Tensor) -> Tensor:
    """Squared distance of mean i from mean j in units of the spread of j: `(n, n)`."""
    count, taps = means.shape
    result = means.new_empty(count, count)
    step = max(1, _CHUNK // (count * taps))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        gaps = means[None] - means[rows, None]
        scaled = gaps * whiten[rows, None] if whiten.dim() == 2 else gaps @ whiten[rows].mT
        result[:, rows] = scaled.square().sum(2).T
    return result


def kernel_divergence(
    weight: Tensor,
    units: Tensor | None = None,
    *,
    shrinkage: float = 0.1,
    squash: str = "median",
    where: str = "weight",
) -> Tensor:
    """Normalised, symmetric divergence K of the units of one layer: 0 for equal kernels.

    The samples of a unit are the kernels `(k,)` of all its channels over all input channels; those
    of linear layers and 1x1 convolutions are numbers. A unit of a single sample has no covariance:
    it takes the variance of the whole layer.

    Args:
        weight: `(channels, inputs, *kernel)`, or `(channels, inputs)`.
        units: Unit of each channel, int64 `(channels,)`, -1 for channels of no unit; by default
            each channel is one. Every unit has a channel.
        shrinkage: Share of each covariance that is replaced by the same variance of all taps, above
            0 and at most 1.
        squash: `"median"` is `1 - exp(-KL / median)`, `"max"` divides by the layer's largest.
        where: Name of the weight, for errors.

    Returns:
        float64 `(units, units)` within [0, 1], zero on the diagonal.

    Raises:
        ArgumentError: An argument is malformed.
        PreconditionError: The weight is not finite.
    """
    _check(weight, shrinkage, squash, where)
    owners = torch.arange(len(weight)) if units is None else units
    if tuple(owners.shape) != (len(weight),) or not bool(
        (torch.bincount(owners + 1) > 0)[1:].all()
    ):
        raise ArgumentError(
            f"does not give each of {len(weight)} channels a unit, and each unit a channel",
            where=f"units of {where}",
        )
    samples = weight.detach().cpu().double()
    samples = samples.reshape(*samples.shape[:2], -1)
    means, covariances = _gaussians(samples[owners >= 0], owners[owners >= 0], shrinkage)
    divergence = gaussian_divergence(means, covariances)
    divergence = (divergence + divergence.T) / 2
    divergence[divergence < _ROUNDING * means.shape[1]] = 0
    return _squashed(divergence.fill_diagonal_(0), squash)


def _check(weight: Tensor, shrinkage: float, squash: str, where: str) -> None:
    if squash not in SQUASHINGS:
        raise ArgumentError(f"{squash!r} is none of {SQUASHINGS}", where="squash")
    if not 0 < shrinkage <= 1:
        raise ArgumentError(f"{shrinkage!r} is not above 0 and at most 1", where="shrinkage")
    if weight.dim() < 2 or not weight.numel():
        raise ArgumentError(
            f"has shape {tuple(weight.shape)}, expected (channels, inputs, ...)", where=where
        )
    if not bool(weight.isfinite().all()):
        raise PreconditionError(
            "holds NaN or infinite values, which have no distribution",
            where=where,
            remedy="Load a checkpoint with finite weights, or lower the learning rate.",
        )


def _gaussians(samples: Tensor, units: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Mean and shrunk covariance of every unit's samples, `(channels, inputs, k)`."""
    _, inputs, taps = samples.shape
    numbers = torch.bincount(units)[:, None] * inputs
    means = samples.new_zeros(len(numbers), taps).index_add_(0, units, samples.sum(1)) / numbers
    centred = samples - means[units, None]
    full = taps <= _FULL
    spread = centred.mT @ centred if full else centred.square().sum(1)
    total = spread.new_zeros(len(numbers), *spread.shape[1:]).index_add_(0, units, spread)
    total = total / (numbers - 1).clamp(min=1).reshape(-1, *[1] * (spread.dim() - 1))
    variances = (total.diagonal(dim1=1, dim2=2) if full else total).mean(1)
    pooled = float((samples - samples.mean((0, 1))).square().mean()) or 1.0
    floor = _FLOOR * (float(variances.mean()) or pooled)
    alone = numbers[:, 0] < 2
    same = torch.where(alone, pooled, shrinkage * (variances + floor))
    own = torch.where(alone, 0.0, 1 - shrinkage)
    if full:
        identity = torch.eye(taps, dtype=samples.dtype)
        return means, own[:, None, None] * total + same[:, None, None] * identity
    return means, own[:, None] * total + same[:, None]


def _squashed(divergence: Tensor, how: str) -> Tensor:
    apart = divergence[~torch.eye(len(divergence), dtype=torch.bool)]
    if not apart.numel() or not float(apart.max()):
        return torch.zeros_like(divergence)
    if how == "max":
        return divergence / apart.max()
    # Where most pairs are the same, their median is 0.
    return -torch.expm1(-divergence / (float(apart.median()) or float(apart.mean())))


def group_divergence(
    graph: ModelGraph, group: ChannelGroup, *, shrinkage: float = 0.1, squash: str = "median"
) -> Tensor:
    """Divergence K of the units of a channel group.

    Where several layers compute the group, as those that add into a residual stream, it is the mean
    of theirs: two units are redundant if they are so in every layer. Where no layer with a matrix
    or kernel does, nothing tells the units apart, and K is 0.

    Args:
        graph: The traced model; what parametrizations make of the weights is what counts.
        group: One of its groups.
        shrinkage: As for `kernel_divergence`.
        squash: As for `kernel_divergence`.

    Returns:
        float64 `(units, units)` within [0, 1], zero on the diagonal.

    Raises:
        ArgumentError: An argument is malformed.
        PreconditionError: A weight is not finite.
    """
    total, layers = torch.zeros(group.units, group.units, dtype=torch.float64), 0
    for member, weight in _producers(graph, group):
        owners = torch.from_numpy(member.units)
        total += kernel_divergence(
            weight.movedim(member.dim, 0),
            owners,
            shrinkage=shrinkage,
            squash=squash,
            where=member.name,
        )
        layers += 1
    return total / max(1, layers)


def _producers(graph: ModelGraph, group: ChannelGroup) -> Iterator[tuple[Member, Tensor]]:
    """Matrices and kernels that compute every unit of a group; tied ones once."""
    seen: list[Tensor] = []
    for member in group.members:
        if member.role != "out" or len(set(member.units[member.units >= 0])) < group.units:
            continue
        weight = getattr(graph.module.get_submodule(member.path), member.attribute, None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and all(weight is not s for s in seen):
            seen.append(weight)
            yield member, weight
