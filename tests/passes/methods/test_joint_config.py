"""What the method `joint` can be told, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from energy_model.errors import ArgumentError
from passes.methods.joint import Joint, JointCompression
from passes.methods.registry import find_method

BAD = {
    "mode": ["neither", None, True, ["both"]],
    "levels": ["any", 4, None],
    "allocate": ["greedy", None],
    "momentum": ["zero", True],
    "bits": [0, 9, 2.0, True, "4", {"a": 0}, {"a": 9}, {3: 4}, {"a": None}, [4]],
    "min_bits": [0, 9, 1.5, True, "1", None],
    "max_bits": [0, 9, 7.5, False, None],
    "start_bits": [0, 9, 3.0, None],
    "unrepaired": [-0.1, 1.1, "all", float("nan"), True],
    "freeze_bits": [-0.1, 1.1, None],
    "rho": [-1, float("nan"), float("inf"), "0.05", True],
    "rho_growth": [0.9, 0, float("inf"), None],
    "prox": [1, 0, None, "yes"],
    "project_every": [-1, 1.5, True, None],
    "dual_every": [-20, 2.5, None],
    "ladder": [-0.1, 1.1, None],
    "start": [0, -1, 1.5, float("nan"), None],
    "stages": [-1, 0.5, True, None],
    "finetune": [-0.1, 1.1, 0.7, None],
    "refits": [0, -1, 1.5, None],
    "honest": ["yes", 1, 0, 2],
    "structure": [-0.1, 1.5, None],
    "significand": [1, 25, 8.0, True, "9"],
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_value_is_refused_by_its_name(name):
    for value in BAD[name]:
        with pytest.raises(ArgumentError, match="is not allowed") as caught:
            Joint(**{name: value})
        assert caught.value.where == f"Joint.{name}", value
        assert caught.value.remedy.startswith("Allowed: ")


def test_every_field_has_a_bad_value():
    assert set(BAD) == {field.name for field in dataclasses.fields(Joint)}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"min_bits": 5, "max_bits": 4}, "max_bits"),
        ({"levels": "uniform", "max_bits": 1}, "max_bits"),
        ({"levels": "uniform", "bits": 1}, "bits"),
        ({"min_bits": 3, "bits": 2}, "bits"),
        ({"max_bits": 3, "bits": {"*": 2, "head": 4}}, "bits"),
        ({"min_bits": 3, "start_bits": 2}, "start_bits"),
        ({"max_bits": 4, "start_bits": 5}, "start_bits"),
        ({"project_every": 20, "dual_every": 30}, "dual_every"),
        ({"project_every": 0, "dual_every": 30}, "dual_every"),
        ({"ladder": 0.8, "finetune": 0.3}, "finetune"),
    ],
)
def test_what_contradicts_itself_is_refused(given, name):
    with pytest.raises(ArgumentError) as caught:
        Joint(**given)
    assert caught.value.where == f"Joint.{name}"


def test_what_agrees_is_allowed():
    assert Joint(project_every=20, dual_every=60).dual_every == 60
    assert Joint(min_bits=4, max_bits=4, bits=4).widths == range(4, 5)
    assert Joint(ladder=0.7, finetune=0.3).finetune == 0.3
    assert all(Joint(ladder=n / 100, finetune=(100 - n) / 100) for n in range(101))
    assert Joint(start=1, rho=0, stages=5, significand=2, bits={}).start == 1


def test_bounds_move_the_defaults():
    assert Joint(levels="uniform").min_bits == 2
    assert Joint(min_bits=6).start_bits == 6
    assert Joint(max_bits=2).start_bits == 2
    assert Joint().widths == range(1, 9)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "config",
    [
        Joint(),
        Joint(levels="uniform", mode="quantize", bits={"a": 2, "b*": 8}),
        Joint(min_bits=6, rho=0.5, rho_growth=1.2, prox=False, dual_every=40, stages=4),
        Joint(honest=True, significand=9, momentum="keep", bits=3),
    ],
    ids=["default", "uniform", "training", "archive"],
)
def test_it_can_be_written_and_read(config):
    again = Joint.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    spec, found = find_method(config)
    assert (spec.name, found, type(spec.build(found))) == ("joint", config, JointCompression)


def test_a_newer_configuration_and_other_fields_are_refused():
    with pytest.raises(ArgumentError, match="newer"):
        Joint.from_dict(Joint().to_dict() | {"version": 99})
    with pytest.raises(ArgumentError, match="unknown fields"):
        Joint.from_dict({"sparsity": 0.9})
