from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from energy_model.errors import ArgumentError
from passes.methods.config import MethodConfig
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import Magnitude

BOTH = (EnergyProjection, Magnitude)
COMMON = {
    "min_per_layer": ([0, 1, 500], [-1, 1.5, True, None, "1"]),
    "min_density": ([None, 0, 0.0, 0.5, 1], [-0.1, 1.01, float("nan"), True, "2%"]),
    "schedule": (["geometric", "linear", "none"], ["cosine", None, 1, True]),
    "hold": ([0, 0.0, 0.3, 1], [-0.1, 1.01, float("nan"), True, None, "0.3"]),
    "interval": ([1, 10, 500], [0, -1, 1.5, True, None, "10"]),
}
OWN = {
    EnergyProjection: {"fill": ([True, False], [1, None, "yes"])},
    Magnitude: {"scope": (["global", "layer"], ["local", None, 1])},
}
ALLOWED = [
    (kind, name, value)
    for kind in BOTH
    for name, (good, _) in (COMMON | OWN[kind]).items()
    for value in good
]
REFUSED = [
    (kind, name, value)
    for kind in BOTH
    for name, (_, bad) in (COMMON | OWN[kind]).items()
    for value in bad
]


@dataclasses.dataclass(frozen=True)
class Later(MethodConfig):
    version: ClassVar[int] = 3

    share: float = 0.5


@pytest.mark.parametrize(("kind", "name", "value"), ALLOWED)
def test_allowed_values_survive_a_dict(kind, name, value):
    config = kind(**{name: value})
    assert getattr(config, name) == value
    data = config.to_dict()
    assert (data["config"], data["version"]) == (kind.__name__, 1)
    assert kind.from_dict(data) == config


@pytest.mark.parametrize(("kind", "name", "value"), REFUSED)
def test_refused_values_name_their_field(kind, name, value):
    with pytest.raises(ArgumentError, match="is not allowed") as caught:
        kind(**{name: value})
    assert caught.value.where == f"{kind.__name__}.{name}"
    assert "Allowed: " in caught.value.remedy


@pytest.mark.parametrize("kind", BOTH)
def test_defaults(kind):
    config = kind()
    assert (config.min_per_layer, config.min_density) == (1, None)
    assert kind.from_dict({}) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.min_per_layer = 2


def test_defaults_of_their_own():
    assert EnergyProjection().fill is True
    assert Magnitude().scope == "global"


def test_a_newer_or_malformed_version_is_refused():
    for version in (4, "3", None, 3.5):
        with pytest.raises(ArgumentError, match="is newer than 3"):
            Later.from_dict({"version": version, "share": 0.1})
    assert Later.from_dict({"version": 2, "share": 0.1}) == Later(0.1)
    assert Later().to_dict() == {"config": "Later", "version": 3, "share": 0.5}


def test_another_class_and_unknown_fields_are_refused():
    with pytest.raises(ArgumentError, match="the configuration of Magnitude"):
        EnergyProjection.from_dict(Magnitude().to_dict())
    with pytest.raises(ArgumentError, match=r"unknown fields \['colour'\]") as caught:
        Magnitude.from_dict({**Magnitude().to_dict(), "colour": 1})
    assert "min_density" in caught.value.remedy


def test_values_out_of_a_dict_are_validated():
    with pytest.raises(ArgumentError, match="is not allowed"):
        Magnitude.from_dict({**Magnitude().to_dict(), "scope": "everywhere"})
