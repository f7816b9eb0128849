"""The rule that a configuration asks for: a row of the table, with fields of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from passes.dynamic.policies import (
    Allocate,
    AtRandom,
    BelowThreshold,
    ByGradient,
    BySurvivors,
    Drop,
    SameSite,
    SmallestOfAll,
    SmallestOfEach,
)
from passes.dynamic.registry import find_rule
from passes.dynamic.rule import Rule
from passes.dynamic.schedule import Clock, Schedule
from passes.methods.sparse_training.config import SparseTraining

# Steps between events where nothing is said, and events at least: short trainings rewire as well.
_EVERY, _EVENTS = 100, 20
_DROPS: dict[str, Callable[[], Drop]] = {
    "threshold": BelowThreshold,
    "proportional_threshold": lambda: BelowThreshold("proportional", tolerance=0.02),
    "global": SmallestOfAll,
    "layer": SmallestOfEach,
    "layer_by_sign": lambda: SmallestOfEach(by_sign=True),
    "saliency": lambda: SmallestOfAll("saliency"),
    "layer_saliency": lambda: SmallestOfEach(by="saliency"),
}
_BY_GRADIENT = ("saliency", "layer_saliency")


def rule_for(config: SparseTraining, clock: Clock, *, by_count: bool = True) -> Rule:
    """The rule with what was asked for, for a training of some length.

    Args:
        config: The configuration.
        clock: How long training is.
        by_count: The budget counts weights, so that their costs do not matter to the allocation.

    Raises:
        ArgumentError: The schedule is longer than the training.
    """
    rule = find_rule(config.rule)
    if rule.prune is not None:
        return replace(rule, prune=config.steps)
    if rule.schedule is None:
        return rule
    changed: dict[str, Any] = {"schedule": _schedule(config, rule.schedule, clock)}
    if config.drop is not None:
        changed["drop"] = _DROPS[config.drop]()
    if config.grow is not None:
        changed["grow"] = ByGradient() if config.grow == "gradient" else AtRandom()
    if config.drop in _BY_GRADIENT or config.grow == "gradient":
        changed["needs"] = rule.needs | {"gradients"}
    if config.new_values is not None:
        changed["new_values"] = config.new_values
    if config.walk is not None:
        changed["walk"] = config.walk
    changed["allocate"] = _allocate(config, rule.allocate, 0.0 if by_count else 1.0)
    return replace(rule, **changed)


def _schedule(config: SparseTraining, schedule: Schedule, clock: Clock) -> Schedule:
    changed: dict[str, Any] = {}
    if config.every is not None:
        changed |= {"every": config.every, "unit": "steps"}
    elif schedule.unit == "steps" and not schedule.step_zero:
        changed["every"] = max(1, min(_EVERY, clock.steps // _EVENTS))
    if config.cells is not None:
        changed |= {"cells": config.cells, "share": None}
    if config.share is not None:
        changed |= {"share": config.share, "cells": None}
    if config.decay is not None:
        changed["decay"] = config.decay
    if config.stop is not None:
        changed |= {"stop_share": config.stop, "stop_epoch": None}
    if config.stop_epoch is not None:
        changed |= {"stop_epoch": config.stop_epoch, "stop_share": None}
    found = replace(schedule, **changed)
    asked = config.every is not None or config.stop_epoch is not None
    if asked and found.stop_step(clock) > 0:  # to stop at once is a way to ask for no event
        found.check(clock)
    return found


def _allocate(config: SparseTraining, allocate: Allocate, gamma: float) -> Allocate:
    if config.allocate == "same_layer":
        return SameSite()
    if config.allocate == "survivors":
        allocate = BySurvivors()
    if not isinstance(allocate, BySurvivors):
        return allocate
    damping = allocate.damping if config.damping is None else config.damping
    return BySurvivors(damping, gamma if config.gamma is None else config.gamma)
