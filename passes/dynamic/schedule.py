"""When a rewiring rule acts, and how much it may move then: periods, stops and amounts as data.

Steps are counted from 0 over the whole run. An event belongs after the optimizer step `n` when

    n != 0,  n mod P(epoch) = 0  and  n lies before the stop,

with P piecewise constant over epochs (Mostafa and Wang, ICML 2019). The amount is a number of cells
or a share of the active ones; it may decay until the stop, as in Evci et al., ICML 2020 (cosine)
and Dettmers and Zettlemoyer, 2019 (linear, exponential).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from energy_model.config import Config
from energy_model.errors import ArgumentError

Points = tuple[tuple[int, float], ...]
# All that `read_points` reads.
Values = float | Mapping[int, float] | Sequence[Mapping[int, float]] | Sequence[Sequence[float]]
Unit = Literal["steps", "epochs"]
Decay = Literal["constant", "cosine", "linear", "exponential"]
_UNITS = ("steps", "epochs")
_DECAYS = ("constant", "cosine", "linear", "exponential")


def is_whole(value: object, low: int = 1) -> bool:
    """Whether a value is a whole number, and at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_real(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Clock:
    """How long training is.

    Attributes:
        epochs: Their number.
        epoch_steps: Optimizer steps of each.

    Raises:
        ArgumentError: One of them is not a positive whole number.
    """

    epochs: int
    epoch_steps: int

    def __post_init__(self) -> None:
        for name in ("epochs", "epoch_steps"):
            if not is_whole(getattr(self, name)):
                raise ArgumentError(
                    f"{getattr(self, name)!r} is not allowed",
                    where=f"Clock.{name}",
                    remedy="Allowed: a whole number from 1.",
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.epoch_steps


def read_points(value: Any, where: str) -> Points:
    """A piecewise constant value over epochs, from any form in which it is written.

    Args:
        value: A number; `{first epoch: value}`; a list of such mappings, as the authors' YAML files
            have it; or pairs.
        where: What is read, for errors.

    Returns:
        Pairs of first epoch and value, in ascending order of epochs.

    Raises:
        ArgumentError: It is none of these, is empty, or an epoch is given twice.
    """
    pairs = [(0, value)] if is_real(value) else _pairs(value)
    epochs = [pair[0] for pair in pairs]
    good = all(is_whole(e, 0) and is_real(v) for e, v in pairs) and len(set(epochs)) == len(epochs)
    if not pairs or not good:
        raise ArgumentError(
            f"{value!r} is not a value over epochs",
            where=where,
            remedy="Give a number, or {first epoch: number, ...} with each epoch once.",
        )
    return tuple(sorted(pairs))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """What is written, as pairs; no pairs where it cannot be read."""
    parts = [value] if isinstance(value, Mapping) else value
    if not isinstance(parts, list | tuple):
        return []
    pairs: list[tuple[Any, Any]] = []
    for part in parts:
        if isinstance(part, Mapping):
            pairs += part.items()
        elif isinstance(part, list | tuple) and len(part) == 2:
            pairs.append((part[0], part[1]))
        else:
            return []
    return pairs


@dataclass(frozen=True)
class Piecewise(Config):
    """A value that is constant between epochs: a learning rate, a temperature.

    Attributes:
        points: Pairs of first epoch and value, from any form that `read_points` reads.

    Raises:
        ArgumentError: The points cannot be read.
    """

    points: Values

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", read_points(self.points, "Piecewise.points"))

    def at(self, epoch: int) -> float:
        """The value of the last point that is not later than an epoch.

        Raises:
            ArgumentError: The epoch lies before the first point.
        """
        return _value_at(cast(Points, self.points), epoch)


def _value_at(points: Points, epoch: int) -> float:
    place = bisect_right(points, epoch, key=lambda point: point[0])
    if not place:
        raise ArgumentError(
            f"nothing is in force in epoch {epoch}: the first value is for epoch {points[0][0]}",
            where="schedule",
            remedy="Add a value for epoch 0.",
        )
    return points[place - 1][1]


@dataclass(frozen=True, slots=True)
class Due:
    """How much an event may move.

    Attributes:
        cells: Number of cells, all sites together, before it is rounded; or
        share: share of the active cells. Both are `None` when the drop rule alone decides.
    """

    cells: float | None = None
    share: float | None = None

    def of(self, active: int) -> int:
        """The number of cells, at most those that are active.

        Args:
            active: Active cells of what the amount is for: of one site, or of all.
        """
        if self.cells is not None:
            return min(round(self.cells), active)
        return active if self.share is None else round(self.share * active)


@dataclass(frozen=True)
class Schedule(Config):
    """When the rule acts, and by how much.

    Attributes:
        every: Period, constant or piecewise over epochs from epoch 0, in any form that
            `read_points` reads; stored as pairs.
        unit: Of the period. `"steps"`: after every step whose number is a multiple of it, but not
            after step 0. `"epochs"`: after the last step of every so many epochs, but not of the
            last epoch (Mocanu et al. 2018: training ends with weights that were trained).
        stop_epoch: No event in this epoch or later; or
        stop_share: none from this share of all steps on. `None` for both: never stop.
        step_zero: With `unit="steps"`, act after step 0 as well; for rules that act at every step.
        cells: Cells moved by an event, all sites together; or
        share: share of the active cells. `None` for both: what the drop rule finds.
        decay: How the amount falls from the first step to the stop, with t the share of that time:
            `"constant"`; `"cosine"`: `(1 + cos(pi t)) / 2`; `"linear"`: `1 - t`; `"exponential"`.
        end: What is left of the amount at the stop, as a share of the first; exponential decay is
            `end ** t` and needs more than zero.

    Raises:
        ArgumentError: A value is not allowed, or two exclude each other.
    """

    every: Values
    unit: Unit = "steps"
    stop_epoch: int | None = None
    stop_share: float | None = None
    step_zero: bool = False
    cells: int | None = None
    share: float | None = None
    decay: Decay = "constant"
    end: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", read_points(self.every, "Schedule.every"))
        whole = all(is_whole(period) for _, period in self.periods)
        first = self.periods[0][0]
        self._require("every", whole and first == 0, "whole numbers from 1, from epoch 0 on")
        self._require("unit", self.unit in _UNITS, f"one of {_UNITS}")
        stop, share = self.stop_epoch, self.stop_share
        self._require("stop_epoch", stop is None or is_whole(stop, 0), "a whole number from 0")
        part = share is None or (is_real(share) and 0 <= share <= 1)
        self._require("stop_share", part, "a share from 0 to 1")
        self._require("stop_share", stop is None or share is None, "None beside stop_epoch")
        self._require("step_zero", isinstance(self.step_zero, bool), "true or false")
        self._check_amount()

    def _check_amount(self) -> None:
        cells, share = self.cells, self.share
        self._require("cells", cells is None or is_whole(cells, 0), "a whole number from 0")
        part = share is None or (is_real(share) and 0 <= share <= 1)
        self._require("share", part, "a share from 0 to 1")
        self._require("share", cells is None or share is None, "None beside cells")
        self._require("decay", self.decay in _DECAYS, f"one of {_DECAYS}")
        self._require("end", is_real(self.end) and 0 <= self.end <= 1, "a share from 0 to 1")
        good = self.decay != "exponential" or self.end > 0
        self._require("end", good, "more than 0 with exponential decay")

    @property
    def periods(self) -> Points:
        """Pairs of first epoch and period."""
        return cast(Points, self.every)

    def stop_step(self, clock: Clock) -> float:
        """The first step, or the time between steps, from which on no event happens."""
        if self.stop_epoch is not None:
            return min(self.stop_epoch * clock.epoch_steps, clock.steps)
        return clock.steps if self.stop_share is None else self.stop_share * clock.steps

    def due(self, step: int, clock: Clock) -> Due | None:
        """What may be moved after a step; `None` when nothing is to happen.

        Args:
            step: Of the whole training, from 0.
            clock: How long training is.
        """
        if step >= self.stop_step(clock):
            return None
        epoch = step // clock.epoch_steps
        period = int(_value_at(self.periods, epoch))
        if self.unit == "steps":
            happens = step % period == 0 and (step != 0 or self.step_zero)
        else:
            ends = (step + 1) % clock.epoch_steps == 0
            happens = ends and (epoch + 1) % period == 0 and epoch + 1 < clock.epochs
        return self._amount(step, clock) if happens else None

    def events(self, clock: Clock) -> Iterator[int]:
        """The steps after which something is due, in ascending order."""
        stop, length = self.stop_step(clock), clock.epoch_steps
        ends = [first for first, _ in self.periods[1:]] + [clock.epochs]
        for (first, period), end in zip(self.periods, ends, strict=True):
            every, last = int(period), min(end, clock.epochs)
            if self.unit == "steps":
                start = -(-first * length // every) * every
                skip = start == 0 and not self.step_zero
                steps = range(start + every * skip, last * length, every)
            else:
                numbers = range(-(-(first + 1) // every) * every, last + 1, every)
                steps = range(
                    numbers.start * length - 1,
                    min(numbers.stop * length - 1, clock.steps - 1),
                    every * length,
                )
            yield from (step for step in steps if step < stop)

    def check(self, clock: Clock) -> None:
        """Refuse a schedule that does not fit into the training.

        Raises:
            ArgumentError: A value is for an epoch that never comes, the stop lies after the end, or
                no event happens at all.
        """
        latest = max(self.periods[-1][0], (self.stop_epoch or 0) - 1)
        if latest >= clock.epochs or next(self.events(clock), None) is None:
            what = "no event falls into" if latest < clock.epochs else "it is longer than"
            raise ArgumentError(
                f"{what} the {clock.epochs} epochs of {clock.epoch_steps} steps",
                where="schedule",
                remedy="Train longer, or give smaller periods and earlier epochs.",
            )

    def _amount(self, step: int, clock: Clock) -> Due:
        factor = self._factor(step / self.stop_step(clock))
        cells = None if self.cells is None else self.cells * factor
        return Due(cells, None if self.share is None else self.share * factor)

    def _factor(self, time: float) -> float:
        if self.decay == "constant":
            return 1.0
        if self.decay == "exponential":
            return float(self.end**time)
        left = 1 - time if self.decay == "linear" else (1 + math.cos(math.pi * time)) / 2
        return self.end + (1 - self.end) * left
