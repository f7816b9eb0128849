"""Energies of logits: margins, free energy, divergence from the whole network.

H. Salehinejad and S. Valaee, "EDropout: Energy-Based Dropout and Pruning of Deep Neural Networks",
IEEE TNNLS 33(10), 2022. Lower is better. All are float64 `(states,)`, infinite for a candidate
whose numbers are not finite, and can be derived.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean of the true class's logit above the best other one.

    The authors multiply by 10, which changes no order, and find the runner-up by adding -10000 to
    the true class; here it is masked with minus infinity.

    Args:
        logits: `(states, samples, classes)`.
        targets: Classes, int64 `(samples,)`.

    Raises:
        ArgumentError: The shapes do not fit, or targets are no class labels.
        PreconditionError: There is one class only, or no candidate returns finite numbers.
    """
    scores = _checked(logits, targets)
    return finite(-_margins(scores, targets).mean(1))


def margin_prob(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Minus the mean margin of probabilities `softmax(z / T)`: from -1 to 1.

    Args:
        logits: `(states, samples, classes)`.
        targets: Classes, int64 `(samples,)`.
        temperature: T.

    Raises:
        ArgumentError, PreconditionError: See `margin`.
    """
    scores = _checked(logits, targets) / positive(temperature)
    return finite(-_margins(torch.softmax(scores, -1), targets).mean(1))


def free_energy_nll(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean of `-z_y / T + logsumexp(z / T)`: the true class against the free energy of all.

    Args:
        logits: `(states, samples, classes)`.
        targets: Classes, int64 `(samples,)`.
        temperature: T.

    Raises:
        ArgumentError, PreconditionError: See `margin`.
    """
    scores = _checked(logits, targets) / positive(temperature)
    return finite((torch.logsumexp(scores, -1) - _of_targets(scores, targets)).mean(1))


def distill(logits: Tensor, dense: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean divergence `KL(softmax(dense / T) || softmax(z / T))`; needs no labels.

    Args:
        logits: `(states, samples, classes)`.
        dense: Those of the whole network, `(samples, classes)`.
        temperature: T.

    Raises:
        ArgumentError: The shapes do not fit.
        PreconditionError: There is one class only, or no candidate returns finite numbers.
    """
    _check_classes(logits)
    if dense.shape != logits.shape[1:]:
        shapes = f"{tuple(dense.shape)}, the candidates' {tuple(logits.shape[1:])}"
        raise ArgumentError(f"the whole network's logits are {shapes}", where="distill")
    t = positive(temperature)
    whole = torch.log_softmax(dense.detach().double() / t, -1)
    share = whole.exp()
    apart = share * (whole - torch.log_softmax(logits.double() / t, -1))
    # Of a class that is impossible, 0 * log 0 is 0.
    return finite(torch.where(share == 0, 0.0, apart).sum(-1).mean(1))


def _check_classes(logits: Tensor) -> None:
    if logits.dim() != 3 or 0 in logits.shape:
        raise ArgumentError(
            f"logits of shape {tuple(logits.shape)}, expected (states, samples, classes)",
            where="energy",
            remedy="Pass a function of (outputs, targets) as the energy.",
        )
    if logits.shape[2] < 2:
        raise PreconditionError(
            "the model returns a single number for each sample, so that no class stands out",
            where="energy",
            remedy="Pass a function of (outputs, targets) as the energy.",
        )


def _checked(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits in float64."""
    _check_classes(logits)
    _, samples, classes = logits.shape
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not whole or targets.shape != (samples,):
        raise ArgumentError(
            f"are {targets.dtype} of shape {tuple(targets.shape)}, expected classes ({samples},)",
            where="targets",
            remedy="Pass class numbers, or a function of (outputs, targets) as the energy.",
        )
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= classes:
        raise ArgumentError(
            f"run from {least} to {most}, the model has the classes 0 to {classes - 1}",
            where="targets",
        )
    if least == most:
        raise PreconditionError(
            f"all {samples} samples are of class {least}: a constant would be the best answer",
            where="energy",
            remedy="Score with samples of several classes, or use 'distill'.",
        )
    return logits.double()


def _of_targets(scores: Tensor, targets: Tensor) -> Tensor:
    index = targets.long().expand(scores.shape[0], -1).unsqueeze(-1)
    return scores.gather(-1, index).squeeze(-1)


def _margins(scores: Tensor, targets: Tensor) -> Tensor:
    true = F.one_hot(targets.long(), scores.shape[-1]).bool()
    others = scores.masked_fill(true, -math.inf).amax(-1)
    return _of_targets(scores, targets) - others


def finite(energies: Tensor) -> Tensor:
    """Infinite where it is no finite number.

    Raises:
        PreconditionError: All are.
    """
    fine = energies.isfinite()
    if not bool(fine.any()):
        raise PreconditionError(
            "of no candidate the energy is a finite number",
            where="energy",
            remedy="Look for NaN in the weights or the data, or lower the learning rate.",
        )
    return energies.where(fine, torch.full_like(energies, math.inf))


def positive(value: float) -> float:
    """The number itself.

    Raises:
        ArgumentError: It is not above 0, or not finite.
    """
    if not 0 < value < math.inf:
        raise ArgumentError(f"{value} is no finite number above 0", where="temperature or scale")
    return float(value)
