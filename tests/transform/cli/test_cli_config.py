"""--set: the fields of a method's dataclass are its options."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import Magnitude
from passes.methods.quantize_config import Quantize
from passes.methods.registry import methods
from transform.cli.config import configure, defaults, parse_value


def test_without_settings_the_name_stays():
    assert configure("auto", []) == "auto"
    assert configure("energy", []) == "energy"


def test_settings_make_a_configuration():
    settings = ["min_density=0.01", "min_per_layer=3", "fill=false"]
    assert configure("energy", settings) == EnergyProjection(3, 0.01, fill=False)
    assert configure("magnitude", ["scope=layer", "min_density=None"]) == Magnitude(scope="layer")


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", list(methods()))
def test_every_default_can_be_written(name):
    config = methods()[name].config
    written = [f"{key}={value}" for key, value in defaults(config).items()]
    assert configure(name, written) == config()
    assert defaults(config) == asdict(config())


def test_several_numbers_are_written_with_commas():
    assert configure("energy", ["mask_keep=0.6, 0.5"]).mask_keep == (0.6, 0.5)
    assert configure("energy", ["mask_keep=0.6"]).mask_keep == (0.6,)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("auto", "fill=true", "Choose one with --method"),
        ("enrgy", "fill=true", "Did you mean 'energy'"),
        ("energy", "fil=true", r"Did you mean fill\? .*the keys are min_per_layer"),
        ("energy", "fill", "Write key=value"),
        ("energy", "fill=maybe", "Allowed: true or false"),
        ("energy", "min_per_layer=1.5", "Allowed: a whole number"),
        ("energy", "min_per_layer=none", "Allowed: a whole number"),
        ("energy", "min_density=x", "Allowed: none, or a number"),
        ("energy", "min_density=2", "a share from 0 to 1"),
        ("magnitude", "scope=model", "Allowed: global, or layer"),
        ("energy", "mask_keep=0.9,x", "Allowed: a number, or several with commas"),
        ("energy", "mask_keep=", "Allowed: a number, or several with commas"),
    ],
)
def test_bad_settings_are_refused(method, setting, message):
    with pytest.raises(ArgumentError, match=message):
        configure(method, [setting])


@given(
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none()),
    st.sampled_from([str, str.upper, str.title]),
)
def test_numbers_round_trip(value, spelled):
    found = parse_value(spelled(str(value)), int | float | None, "x")
    assert found == value
    assert type(found) is type(value)


def test_narrow_types_come_before_text():
    assert parse_value("3", str | int, "x") == 3
    assert parse_value("three", str | int, "x") == "three"
    assert parse_value("true", str | bool | None, "x") is True
    assert parse_value("2", Literal[1, 2] | None, "x") == 2


def test_a_type_that_no_option_can_have_is_refused():
    with pytest.raises(ArgumentError, match="not allowed"):
        parse_value("1,2", list[int], "x")


def test_several_methods_stand_with_commas_and_their_settings_with_names() -> None:
    assert configure("l2,quantize", []) == ["l2", "quantize"]
    settings = ["quantize.weights=4", "quantize.activations=none", "magnitude.scope=layer"]
    assert configure("magnitude, quantize", settings) == [
        Magnitude(scope="layer"),
        Quantize(weights=4, activations=None),
    ]


@pytest.mark.parametrize("setting", ["weights=4", "l1.scope=layer", "quantize"])
def test_settings_of_several_methods_must_name_theirs(setting: str) -> None:
    with pytest.raises(ArgumentError, match="which method it is of"):
        configure("l2,quantize", [setting])
