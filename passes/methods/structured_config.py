"""Configurations of the structured methods: one class for each score, so that each is a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.methods.config import MethodConfig


@dataclass(frozen=True)
class StructuredConfig(MethodConfig):
    """What all methods that remove channels can be told.

    Attributes:
        scope: `"global"` ranks the units of all groups together; `"layer"` removes the same share
            of every group.
        per_cost: Rank by score divided by what a unit's removal saves; global scope only.
        normalize: How scores of different groups are made comparable: `"mean"` divides by the
            group's mean, `"max"` by its largest, `"none"` leaves them.
        steps: In how many steps the channels go when the model is trained; 1 removes them before
            training, so that all of it is spent on the small model.
        until: Share of the training after which the last step has been taken.
        max_removed: Share of its units that a group loses at most.
        channel_multiple: Channel counts are multiples of this; `None` takes the hardware's.
    """

    scope: Literal["global", "layer"] = "global"
    per_cost: bool = False
    normalize: Literal["mean", "max", "none"] = "mean"
    steps: int = 1
    until: float = 0.5
    max_removed: float = 0.95
    channel_multiple: int | None = None

    def __post_init__(self) -> None:
        self._require("scope", self.scope in ("global", "layer"), "'global' or 'layer'")
        self._require("per_cost", isinstance(self.per_cost, bool), "true or false")
        known = ("mean", "max", "none")
        self._require("normalize", self.normalize in known, f"one of {known}")
        self._require("steps", _whole(self.steps), "a whole number from 1")
        self._require("until", _share(self.until), "a share from 0 to 1")
        self._require("max_removed", _share(self.max_removed), "a share from 0 to 1")
        multiple = self.channel_multiple
        whole = multiple is None or _whole(multiple)
        self._require("channel_multiple", whole, "None, or a whole number from 1")
        layer_per_cost = self.per_cost and self.scope == "layer"
        self._require("per_cost", not layer_per_cost, "false with scope='layer', which ranks none")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _share(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= 1  # type: ignore[operator]


@dataclass(frozen=True)
class L1Channels(StructuredConfig):
    """Remove the channels whose weights have the smallest sum of magnitudes."""


@dataclass(frozen=True)
class L2Channels(StructuredConfig):
    """Remove the channels whose weights have the smallest sum of squares."""


@dataclass(frozen=True)
class BatchNormChannels(StructuredConfig):
    """Remove the channels with the smallest batch norm scales (network slimming).

    Scales of different layers are compared as they are, as the paper does.
    """

    normalize: Literal["mean", "max", "none"] = "none"


@dataclass(frozen=True)
class TaylorChannels(StructuredConfig):
    """Remove the channels that change the loss least to first order.

    Attributes:
        batches: Batches that the gradient is averaged over.
        whole_units: `|sum w g|` over a unit's weights in each layer, instead of `sum |w g|`.
    """

    batches: int = 16
    whole_units: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("batches", _whole(self.batches), "a whole number from 1")
        self._require("whole_units", isinstance(self.whole_units, bool), "true or false")


@dataclass(frozen=True)
class RandomChannels(StructuredConfig):
    """Remove random channels; what every other score has to beat."""
