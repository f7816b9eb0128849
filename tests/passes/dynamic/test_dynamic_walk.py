"""Walks as data: what they say, how they are written, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from energy_model.errors import ArgumentError
from passes.dynamic.deep_r import noise_size
from passes.dynamic.rule import RULES
from passes.dynamic.schedule import Piecewise
from passes.dynamic.walk import Walk


def test_the_default_is_that_of_the_script():
    walk = Walk()
    [(first, temperature)] = walk.temperature
    assert first == 0
    assert math.isclose(noise_size(0.5, temperature), 0.5 * 1e-5)
    assert walk == RULES["deepr"].walk


def test_temperatures_over_epochs_are_read_and_written():
    walk = Walk("gradient", "first_update", 0.01, {0: 1e-5, 25: 1e-8, 80: 0})
    assert walk.temperature == ((0, 1e-5), (25, 1e-8), (80, 0))
    assert [Piecewise(walk.temperature).at(e) for e in (0, 24, 25, 200)] == [1e-5, 1e-5, 1e-8, 0]
    again = Walk.from_dict(json.loads(json.dumps(walk.to_dict())))
    assert again.to_dict() == walk.to_dict()
    assert Walk.from_dict({"temperature": [{0: 1e-3}, {5: 1e-4}]}).temperature[1] == (5, 1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise", "loss"),
        ("signs", "none"),
        ("eta", -1),
        ("eta", math.nan),
        ("l1", -1e-9),
        ("l1", None),
        ("temperature", -1e-9),
        ("temperature", {0: 1e-3, 4: -1e-3}),
        ("temperature", {1: 1e-3}),
        ("temperature", {}),
        ("temperature", "hot"),
        ("temperature", math.inf),
    ],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(ArgumentError, match=rf"Walk\.{field}"):
        Walk(**{field: value})


def test_unknown_fields_are_refused():
    with pytest.raises(ArgumentError, match="unknown fields"):
        Walk.from_dict({"heat": 1})


@pytest.mark.parametrize(
    ("rule", "changed", "words"),
    [
        ("deepr", {"new_values": "normal"}, "grows at zero"),
        ("static", {"walk": Walk()}, "by a schedule"),
        ("deepr", {"walk": None}, "have signs"),
        ("set", {"needs": frozenset({"signs"})}, "have signs"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, changed, words):
    with pytest.raises(ArgumentError, match=words):
        replace(RULES[rule], **changed)
