"""Energies of candidates from what they return, by name or by a function of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.logit_energies import (
    distill,
    finite,
    free_energy_nll,
    margin,
    margin_prob,
    positive,
)
from passes.outputs import first_tensor

# Takes what the model returns for one state, and the targets; returns one number.
UserEnergy = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class TaskEnergy:
    """An energy of what candidates return.

    Attributes:
        name: For reports.
        function: Energies `(states,)` of logits `(states, samples, classes)` and targets, or the
            whole network's logits; `None` if `user` is called for each candidate.
        user: A function of (outputs, targets) that returns one number.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    user: UserEnergy | None = None

    @property
    def needs_dense(self) -> bool:
        """Whether it compares with the whole network, not with targets."""
        return self.user is None and self.name == "distill"

    def __call__(self, outputs: Sequence[Any], targets: Any = None, dense: Any = None) -> Tensor:
        """Energies: infinite where a candidate's numbers are not finite.

        Args:
            outputs: What the model returns in each state, at least one.
            targets: Those of the samples.
            dense: What the whole network returns, if `needs_dense`.

        Returns:
            Float64 `(states,)`, on the CPU.

        Raises:
            ArgumentError: What is needed is missing or does not fit.
            PreconditionError: See `margin`.
        """
        if self.user is not None:
            numbers = [_number(self.user(each, targets)) for each in outputs]
            return finite(torch.stack(numbers).cpu())
        other = logits_of(dense) if self.needs_dense else targets
        if not isinstance(other, Tensor):
            raise ArgumentError(
                f"the targets are {type(other).__name__}, not a tensor of classes",
                where=f"energy {self.name!r}",
                remedy="Yield (inputs, targets), or use 'distill', which needs no labels.",
            )
        assert self.function is not None
        logits = torch.stack([logits_of(each) for each in outputs])
        return self.function(logits, other.to(logits.device)).cpu()


_NAMED: Mapping[str, Callable[..., Tensor]] = {
    "margin": margin,
    "margin_prob": margin_prob,
    "free_energy_nll": free_energy_nll,
    "distill": distill,
}


def task_energy(energy: str | UserEnergy, temperature: float = 1.0) -> TaskEnergy:
    """The energy of a name, or of a function of (outputs, targets) that returns one number.

    Args:
        energy: `"margin"`, `"margin_prob"`, `"free_energy_nll"`, `"distill"`, or a function.
        temperature: Divides the logits; `"margin"` has none.

    Raises:
        ArgumentError: There is none of that name, or the temperature is not above 0.
    """
    if callable(energy):
        return TaskEnergy(getattr(energy, "__name__", type(energy).__name__), user=energy)
    if energy not in _NAMED:
        raise ArgumentError(f"{energy!r} is none of {tuple(_NAMED)}", where="energy")
    function, t = _NAMED[energy], positive(temperature)
    if energy == "margin":
        return TaskEnergy(energy, function)
    return TaskEnergy(energy, lambda logits, other: function(logits, other, t))


def energy_scales(*energies: Tensor) -> tuple[float, ...]:
    """Standard deviation of each energy over the first population, to be divided by.

    Infinite energies do not count; one that does not vary has the scale 1.
    """
    return tuple(map(_scale, energies))


def combined(task: Tensor, ising: Tensor, weight: float, scales: Sequence[float]) -> Tensor:
    """`task / scale + weight * ising / scale`, float64 `(states,)`.

    Args:
        task: Energies of candidates.
        ising: Their Ising energies.
        weight: Of the latter.
        scales: Of both: `energy_scales` of the first population.

    Raises:
        ArgumentError: A scale is not a number above 0.
    """
    first, second = (positive(scale) for scale in scales)
    return task.double() / first + weight * ising.double().to(task.device) / second


def logits_of(outputs: Any) -> Tensor:
    """The tensor that holds the logits: what a model returns, or the first of several.

    Raises:
        ArgumentError: There is no tensor.
    """
    found = first_tensor(outputs)
    if found is None:
        raise ArgumentError(
            f"the model returns {type(outputs).__name__}, which holds no logits",
            where="energy",
            remedy="Pass a function of (outputs, targets) as the energy.",
        )
    return found


def _number(value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError):
        found = torch.empty(0)
    if found.numel() != 1:
        what = tuple(found.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(
            f"the function returns {what}, not one number",
            where="energy",
            remedy="Average over the samples.",
        )
    return found.reshape(()).double()


def _scale(energies: Tensor) -> float:
    finite = energies[energies.isfinite()].double()
    if len(finite) < 2:
        return 1.0
    spread = float(finite.std(correction=0))
    # What equal numbers are apart is rounding.
    return spread if spread > 1e-12 * float(finite.abs().max()) else 1.0
