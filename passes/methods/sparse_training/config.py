"""Configuration of dynamic sparse training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from passes.dynamic.rule import RULES, Rule
from passes.dynamic.schedule import Clock, Schedule, is_real, is_whole
from passes.methods.config import MethodConfig

Law = Literal["uniform", "er", "erk", "magnitude"]
_LAWS = ("uniform", "er", "erk", "magnitude")
# Steps between events where nothing is said, and events at least: short trainings rewire as well.
_EVERY, _EVENTS = 100, 20


@dataclass(frozen=True)
class SparseTraining(MethodConfig):
    """Networks that are sparse from the start, their number of weights constant to the unit.

    Attributes:
        rule: Name of a rule of `passes.dynamic.rule.RULES`: which weights are dropped, which sites
            get them back and where they grow.
        start: Share of every layer at first: `"uniform"`, `"er"` or `"erk"` at random positions, or
            `"magnitude"`: the largest of the model, with the shares of ERK. `None`: the rule's.
        every: Steps between rewiring events; `None` is the rule's, but 100 become a twentieth of
            the training where that is less.
        share: Share of the active weights that an event moves at first; `None` is the rule's.
        stop: Share of the training after which nothing is rewired; `None` is the rule's.
        rescale: Multiply initial values by one over the root of the layer's density, so that
            outputs keep their variance. `None`: where positions are random, not by magnitude.
        min_per_layer: Least number of weights that every layer keeps.
    """

    rule: str = "dsr_plus"
    start: Law | None = None
    every: int | None = None
    share: float | None = None
    stop: float | None = None
    rescale: bool | None = None
    min_per_layer: int = 1

    def __post_init__(self) -> None:
        self._require("rule", self.rule in RULES, f"one of {tuple(RULES)}")
        self._require("start", self.start is None or self.start in _LAWS, f"None or one of {_LAWS}")
        every = self.every is None or is_whole(self.every)
        self._require("every", every, "None, or a whole number from 1")
        for field in ("share", "stop"):
            value = getattr(self, field)
            good = value is None or (is_real(value) and 0 <= value <= 1)
            self._require(field, good, "None, or a share from 0 to 1")
        self._require("rescale", self.rescale in (None, True, False), "None, True or False")
        self._require("min_per_layer", is_whole(self.min_per_layer), "a whole number from 1")

    @property
    def law(self) -> str:
        """Of the shares at first."""
        return RULES[self.rule].start if self.start is None else self.start

    @property
    def rescaled(self) -> bool:
        """Whether initial values are multiplied."""
        return self.law != "magnitude" if self.rescale is None else self.rescale

    def rule_for(self, clock: Clock) -> Rule:
        """The rule with what was asked for, for a training of some length."""
        rule = RULES[self.rule]
        if rule.schedule is None:
            return rule
        schedule: Schedule = rule.schedule
        if self.every is not None:
            schedule = replace(schedule, every=self.every, unit="steps")
        elif schedule.unit == "steps":
            every = max(1, min(_EVERY, clock.steps // _EVENTS))
            schedule = replace(schedule, every=every)
        if self.share is not None:
            schedule = replace(schedule, share=self.share, cells=None)
        if self.stop is not None:
            schedule = replace(schedule, stop_share=self.stop, stop_epoch=None)
        return replace(rule, schedule=schedule)
