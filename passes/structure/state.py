"""Keep-states: which units of every channel group stay, and what that means for each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.structure.groups import ChannelGroup, ChannelGroups

# Of every free group, by name, whether each unit stays: bool `(units,)`.
State = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What stays along one dimension of one parameter or buffer.

    Attributes:
        path: The module's path; empty for the model itself.
        attribute: Name of the parameter or buffer in the module.
        dim: The dimension.
        keep: Of every index along `dim`, whether it stays: bool `(n,)`.
    """

    path: str
    attribute: str
    dim: int
    keep: NDArray[np.bool_]


def unit_step(group: ChannelGroup, multiple: int) -> int:
    """Units by which a group may grow or shrink, so that its channels stay multiples.

    Args:
        group: The group.
        multiple: Channel counts are to be multiples of this, as the hardware prefers.
    """
    return multiple // math.gcd(multiple, max(1, group.unit_size))


def least_units(group: ChannelGroup, multiple: int) -> int:
    """Units that a free group keeps at least: whole steps, or all if it has no more."""
    step = unit_step(group, multiple)
    return min(group.units, -(-max(1, group.minimum) // step) * step)


def rounded_units(group: ChannelGroup, count: int, multiple: int) -> int:
    """The nearest number of units that is allowed: a multiple of the step, or all of them.

    Ties go up; between `least_units` and `group.units`.
    """
    step = unit_step(group, multiple)
    nearest = (2 * count + step) // (2 * step) * step
    if group.units - count <= abs(nearest - count):
        return group.units
    return min(group.units, max(least_units(group, multiple), nearest))


def full_state(groups: ChannelGroups) -> dict[str, NDArray[np.bool_]]:
    """The state that keeps everything."""
    return {group.name: np.ones(group.units, dtype=bool) for group in groups.free}


def random_state(
    groups: ChannelGroups, seed: int, multiple: int = 1
) -> dict[str, NDArray[np.bool_]]:
    """Every free group keeps a random half of its units.

    Args:
        groups: The model's groups.
        seed: The same seed gives the same state.
        multiple: Channel counts are rounded to multiples of this.
    """
    generator = np.random.default_rng(seed)
    state = {}
    for group in groups.free:
        count = rounded_units(group, group.units // 2, multiple)
        keep = np.zeros(group.units, dtype=bool)
        keep[generator.permutation(group.units)[:count]] = True
        state[group.name] = keep
    return state


def checked_state(groups: ChannelGroups, state: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """A complete state out of what a user gives: groups that are not named keep everything.

    Args:
        groups: The model's groups.
        state: Booleans by group name: arrays, tensors or lists, one for each unit.

    Raises:
        ArgumentError: An unknown group, a wrong length, no booleans, a frozen group that would lose
            units, or a group that would keep fewer than its minimum.
    """
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"{type(state).__name__} is no state",
            where="state",
            remedy="Pass a dict of group names to booleans, such as random_state(0) returns.",
        )
    known, found = groups.by_name, full_state(groups)
    for name, given in state.items():
        if name not in known:
            raise ArgumentError(
                f"there is no channel group {name!r}",
                where="state",
                remedy=f"The groups are {', '.join(known)}.",
            )
        group, keep = known[name], _booleans(name, given)
        if keep.shape != (group.units,):
            raise ArgumentError(
                f"has shape {keep.shape}, and the group has {group.units} units",
                where=f"state of {name!r}",
                remedy="Give one boolean for each unit.",
            )
        if group.frozen and not keep.all():
            raise ArgumentError(
                f"all its units stay: {group.why}",
                where=f"state of {name!r}",
                remedy="Leave frozen groups out of the state.",
            )
        if np.count_nonzero(keep) < group.minimum:
            raise ArgumentError(
                f"keeps {np.count_nonzero(keep)} units, {group.minimum} is the least",
                where=f"state of {name!r}",
            )
        if not group.frozen:
            found[name] = keep
    return found


def _booleans(name: str, given: Any) -> NDArray[np.bool_]:
    keep = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if keep.dtype != np.bool_:
        raise ArgumentError(
            f"holds {keep.dtype} values, not booleans",
            where=f"state of {name!r}",
            remedy="True keeps a unit, False removes it.",
        )
    return keep


def kept_along(units: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of every index along a dimension, whether it stays.

    Args:
        units: Unit of each index, or -1 for what always stays: `(n,)`.
        keep: Of every unit whether it stays.
    """
    return (units < 0) | keep[units]


def cuts(groups: ChannelGroups, state: State) -> tuple[Cut, ...]:
    """What every parameter and buffer loses; those that lose nothing are left out.

    An index stays only if every group that maps it keeps it. Tied parameters come once for each
    owner, with equal cuts.
    """
    found: dict[tuple[str, str, int], NDArray[np.bool_]] = {}
    for group in groups.free:
        if state[group.name].all():
            continue
        for member in group.members:
            keep = kept_along(member.units, state[group.name])
            place = (member.path, member.attribute, member.dim)
            found[place] = found[place] & keep if place in found else keep
    return tuple(Cut(*place, keep) for place, keep in found.items() if not keep.all())


def as_indices(keep: NDArray[np.bool_]) -> Tensor:
    """Indices of what stays, for `index_select`: int64."""
    return torch.from_numpy(np.flatnonzero(keep))
