"""The configuration of the search over keep-states: what is allowed, and what is written."""

from __future__ import annotations

import dataclasses
import json

import pytest
from torch import nn

import transform
from energy_model.errors import ArgumentError
from passes.methods.ising import SPEC, Ising
from passes.methods.registry import find_method

REFUSED = {
    "states": [3, 8.0, True, "8"],
    "energy": ["loss", 3, None],
    "temperature": [0, -1.0, float("nan"), "1"],
    "ising_weight": [-1, float("inf")],
    "inter": [-0.1, None],
    "search": ["sa", None],
    "init_keep": [0, 1.1, "half"],
    "search_share": [-0.1, 1.1, True],
    "generations": [0, 2.5],
    "every": [0, None],
    "patience": [0, 1.5],
    "anneal": [1, "yes"],
    "mutation": [-0.1, 2],
    "crossover": [1.5],
    "noise": [2, "some"],
    "importance": ["taylors", None],
    "repair_temperature": [-1, float("nan")],
    "local_flips": [0],
    "score_share": [0, 1.5],
    "score_samples": [1, 8.5],
    "norms": ["eval"],
    "backend": ["slow", None],
    "refresh": [0],
    "bn_batches": [-1, 1.5],
    "max_removed": [1.5, -1],
    "channel_multiple": [0, 2.5],
}


def test_every_field_has_values_that_are_refused():
    assert set(REFUSED) == {field.name for field in dataclasses.fields(Ising)}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in REFUSED.items() for v in vs])
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ArgumentError) as error:
        Ising(**{field: value})
    assert error.value.where == f"Ising.{field}"


def test_it_is_the_method_ising():
    assert transform.Ising is Ising
    assert find_method("ising") == (SPEC, Ising())
    assert find_method(Ising(states=4))[0] is SPEC


def test_it_survives_json():
    config = Ising(states=5, energy="combined", init_keep=0.5, noise=0.1, channel_multiple=4)
    assert Ising.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def own(outputs, targets):
    return 0.0


class Own:
    def __call__(self, outputs, targets):
        return 0.0


@pytest.mark.parametrize(
    ("energy", "name"),
    [
        (own, f"{__name__}.own"),
        (Own(), f"{__name__}.Own"),
        (nn.CrossEntropyLoss(), "torch.nn.modules.loss.CrossEntropyLoss"),
    ],
)
def test_functions_are_written_by_name_and_not_read_back(energy, name):
    config = Ising(energy=energy)
    written = json.loads(json.dumps(config.to_dict()))
    assert written["energy"] == config.energy_name == name
    with pytest.raises(ArgumentError):
        Ising.from_dict(written)


@pytest.mark.parametrize(
    ("energy", "task", "labels", "classes", "runs", "couples"),
    [
        ("margin", "margin", True, True, True, False),
        ("margin_prob", "margin_prob", True, True, True, False),
        ("free_energy_nll", "free_energy_nll", True, True, True, False),
        ("combined", "margin", True, True, True, True),
        ("distill", "distill", False, False, True, False),
        ("ising", "margin", False, False, False, True),
        ("random", "margin", False, False, False, False),
        (own, own, True, False, True, False),
    ],
)
def test_what_an_energy_needs(energy, task, labels, classes, runs, couples):
    config = Ising(energy=energy)
    assert config.task == task
    assert (config.needs_labels, config.compares_classes) == (labels, classes)
    assert (config.runs_candidates, config.couples) == (runs, couples)
