"""A rule from outside: its own policies, found by name, and caught where it breaks its word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from sparse_training_runs import CONV_TOTAL, trained, watched

from energy_model.errors import (
    ArgumentError,
    CompressionError,
    PostconditionError,
    PreconditionError,
)
from passes.dynamic import registry
from passes.dynamic.grow import at_random
from passes.dynamic.policies import AtRandom, ByGradient, SameSite, SmallestOfAll
from passes.dynamic.random_keys import key_of
from passes.dynamic.registry import add_rule, find_rule, rules
from passes.dynamic.rule import RULES, Rule
from passes.dynamic.schedule import Schedule
from passes.methods.sparse_training import SparseTraining

ACTIVE = CONV_TOTAL * 20 // 100


@dataclass(frozen=True)
class DropAnywhere:
    """Random cells, whatever their magnitude."""

    def drop(self, event):
        gone = []
        for site in event.sites:
            count = event.due.of(int(site.mask.sum()) - 1)
            gone.append(at_random(site.mask, count, key_of(event.seed, event.number, site.name)))
        return gone

    def next_threshold(self, event, dropped):
        return event.threshold + dropped


@dataclass(frozen=True)
class ToTheFirst:
    """Everything to the first layer, as long as it has room."""

    def weights(self, event, kept, lost):
        return [float(index == 0) for index in range(len(kept))]


@dataclass(frozen=True)
class ByGradientAndPlace:
    """Where |gradient| times the place is largest."""

    def grow(self, event, site, free, count):
        places = torch.arange(1, site.cells + 1)
        scores = (site.gradients[:, 0].abs() * places).masked_fill(~free, -1)
        chosen = torch.zeros_like(free)
        chosen[scores.sort(descending=True, stable=True).indices[:count]] = True
        return chosen


MINE = Rule(
    "mine",
    start="uniform",
    schedule=Schedule(every=3, share=0.2),
    drop=DropAnywhere(),
    allocate=ToTheFirst(),
    grow=ByGradientAndPlace(),
    needs=frozenset({"gradients"}),
    threshold=0.0,
)


@pytest.fixture(autouse=True)
def no_rules_left_behind(monkeypatch):
    monkeypatch.setattr(registry, "_ADDED", {})


def test_a_rule_of_ones_own_trains_under_the_budget(monkeypatch):
    add_rule(MINE)
    assert find_rule("mine") is MINE and "mine" in rules()
    config = SparseTraining(rule="mine", every=2)
    assert SparseTraining.from_dict(config.to_dict()) == config
    seen = watched(monkeypatch)
    result = trained("nonzeros<=20%", method=SparseTraining.from_dict(config.to_dict()))
    assert result.certificate.holds
    assert seen.active() == [ACTIVE] * 11
    active = int(seen.first[0]["0"].sum())
    for moment in seen.events:  # the first layer takes all that it has room for
        lost, room = sum(moment.row["dropped"].values()), 72 - active
        active += min(lost, room) - round(0.2 * (active - 1))
        assert int(moment.after["0"].sum()) == active
    assert active == 60
    thresholds = [moment.row["threshold"] for moment in seen.events]
    assert thresholds == [sum(seen.moved()[:n]) for n in range(len(thresholds))]


def test_growth_is_where_the_rule_wants_it(monkeypatch):
    add_rule(replace(MINE, allocate=SameSite()))
    seen, gradients = watched(monkeypatch), []
    grow = ByGradientAndPlace.grow

    def told(self, event, site, free, count):
        gradients.append((event.number, site.name, site.gradients.clone(), free.clone(), count))
        return grow(self, event, site, free, count)

    monkeypatch.setattr(ByGradientAndPlace, "grow", told)
    trained("nonzeros<=20%", rule="mine", every=2)
    for number, name, gradient, free, count in gradients:
        moment = seen.events[number - 1]
        assert torch.equal(free, ~moment.before[name])
        scores = gradient[:, 0].abs() * torch.arange(1, len(gradient) + 1)
        best = sorted(range(len(gradient)), key=lambda i: -float(scores[i]) if free[i] else 1)
        assert sorted(best[:count]) == moment.grown[name].nonzero().flatten().tolist()
    assert len(gradients) == 3 * len(seen.events) > 0


def test_names_are_taken_once():
    for name in ("rigl", "static"):
        with pytest.raises(ArgumentError, match="another rule"):
            add_rule(replace(MINE, name=name))
    add_rule(MINE)
    add_rule(replace(MINE))  # the same again is no other
    with pytest.raises(ArgumentError, match="'mine'"):
        add_rule(replace(MINE, threshold=1.0))
    with pytest.raises(ArgumentError, match="Did you mean 'mine'"):
        SparseTraining(rule="mien")


def entry(name, load):
    return SimpleNamespace(name=name, value=f"package:{name}", load=load)


def test_installed_packages_bring_rules(monkeypatch):
    asked = []
    found = [entry("mine", lambda: MINE)]
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or found)
    assert SparseTraining(rule="mine").law == "uniform"
    assert set(asked) == {"transform.rules"}
    seen = watched(monkeypatch)
    trained("nonzeros<=20%", rule="mine", every=5, epochs=2)
    assert seen.active() == [ACTIVE] * 2
    with pytest.raises(ArgumentError, match="another rule"):
        add_rule(replace(MINE, start="erk"))


def broken():
    raise ImportError("no such module")


@pytest.mark.parametrize(
    ("name", "load", "told"),
    [
        ("mine", broken, "cannot be loaded: ImportError"),
        ("mine", lambda: DropAnywhere(), "must be a Rule"),
        ("rigl", lambda: replace(MINE, name="rigl"), "name of its own"),
    ],
)
def test_packages_that_bring_none(name, load, told, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry(name, load)])
    with pytest.raises(CompressionError, match=told) as caught:
        SparseTraining(rule="other")
    assert f"package:{name}" in str(caught.value)
    assert SparseTraining(rule="rigl").law == RULES["rigl"].start  # ours need no packages


def test_a_rule_whose_name_is_another_than_its_entry_point_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry("other", lambda: MINE)])
    with pytest.raises(CompressionError):
        SparseTraining(rule="other")


@dataclass(frozen=True)
class DropTwice(DropAnywhere):
    """Cells that are not active."""

    def drop(self, event):
        return [torch.ones_like(site.mask) for site in event.sites]


@dataclass(frozen=True)
class GrowTooMany:
    """One more than asked."""

    def grow(self, event, site, free, count):
        return at_random(free, count + 1, 0)


@dataclass(frozen=True)
class GrowOnTop:
    """Cells that are active already."""

    def grow(self, event, site, free, count):
        return at_random(site.mask, count, 0)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("parts", "error", "told"),
    [
        ({"drop": DropTwice()}, ArgumentError, "was not active"),
        ({"grow": GrowTooMany()}, PostconditionError, "'mine'"),
        ({"grow": GrowOnTop()}, PostconditionError, "'mine'"),
        ({"needs": frozenset()}, PreconditionError, "gradients"),
    ],
)
def test_rules_that_break_their_word_are_caught(parts, error, told):
    add_rule(
        replace(MINE, grow=ByGradient(), **{"allocate": SameSite()} | parts)
        if "grow" not in parts
        else replace(MINE, allocate=SameSite(), **parts)
    )
    with pytest.raises(error, match=told):
        trained("nonzeros<=20%", rule="mine", every=2, epochs=1)


@pytest.mark.parametrize(
    "parts",
    [
        {"drop": None},
        {"schedule": None},
        {"schedule": None, "drop": None, "prune": "x"},
    ],
)
def test_rules_that_are_none(parts):
    with pytest.raises(ArgumentError, match="a drop belongs to a schedule"):
        replace(MINE, **parts)


def test_a_row_is_enough(monkeypatch):
    """A method that no table has: global drop, random growth in the same layer."""
    row = Rule("row", schedule=Schedule(every=2, cells=9), drop=SmallestOfAll(), grow=AtRandom())
    add_rule(row)
    seen = watched(monkeypatch)
    trained("nonzeros<=15%", rule="row", every=None, epochs=2)
    assert seen.moved() == [9] * len(seen.events) and seen.events
    for moment in seen.events:
        assert moment.row["dropped"] == moment.row["grown"]
