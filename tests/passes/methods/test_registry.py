from __future__ import annotations

from dataclasses import dataclass

import pytest

from energy_model.errors import ArgumentError, CompressionError
from passes.methods import registry
from passes.methods.base import Method, MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.energy_projection import SPEC as ENERGY
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.magnitude import Magnitude
from passes.methods.registry import find_method, methods


@dataclass(frozen=True)
class Stranger(MethodConfig):
    """A configuration that nobody registered."""


@dataclass
class Entry:
    """An entry point of another package."""

    name: str
    loaded: object
    value: str = "stranger.module:SPEC"

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def install(monkeypatch, *entries):
    found = {MethodSpec.GROUP: list(entries)}
    monkeypatch.setattr(registry, "entry_points", lambda group: found[group])


def test_ours_come_through_the_entry_points():
    known = methods()
    assert known["energy"] is ENERGY
    assert known["magnitude"] is MAGNITUDE
    assert list(known) == sorted(known)


@pytest.mark.parametrize("spec", [ENERGY, MAGNITUDE])
def test_what_a_method_says_of_itself(spec):
    assert {"energy", "nonzeros", "weight_bits"} <= spec.serves
    assert issubclass(spec.method, Method)
    assert "20" in spec.source
    assert spec.method.name == spec.name
    assert spec.build().config == spec.config()
    assert spec.build(spec.config(min_per_layer=3)).config.min_per_layer == 3


def test_found_by_name_or_by_configuration():
    assert find_method("energy") == (ENERGY, EnergyProjection())
    assert find_method(Magnitude(scope="layer")) == (MAGNITUDE, Magnitude(scope="layer"))


def test_unknown_names_are_answered_with_a_suggestion():
    with pytest.raises(ArgumentError, match="unknown method 'magnitud'") as caught:
        find_method("magnitud")
    assert caught.value.remedy.startswith("Did you mean 'magnitude'?")
    with pytest.raises(ArgumentError, match="unknown method") as caught:
        find_method("zzz")
    assert "Did you mean" not in caught.value.remedy
    assert "'energy'" in caught.value.remedy


@pytest.mark.parametrize("method", [None, 3, EnergyProjection])
def test_what_is_no_method(method):
    with pytest.raises(ArgumentError, match="is not a method"):
        find_method(method)


def test_a_configuration_that_nobody_registered():
    with pytest.raises(ArgumentError, match="configured by Stranger"):
        find_method(Stranger())


def test_a_strangers_method(monkeypatch):
    spec = MethodSpec("stranger", Stranger, MAGNITUDE.method, frozenset({"energy"}), "nowhere 2024")
    install(monkeypatch, Entry("stranger", spec), Entry("energy", ENERGY))
    assert list(methods()) == ["energy", "stranger"]
    assert find_method(Stranger()) == (spec, Stranger())
    assert find_method("stranger") == (spec, Stranger())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("broken", ImportError("no module")), "cannot be loaded: ImportError: no module"),
        (Entry("other", ENERGY), "a MethodSpec of the same name"),
        (Entry("energy", object()), "a MethodSpec of the same name"),
    ],
)
def test_a_broken_registration_is_named(monkeypatch, entry, message):
    install(monkeypatch, entry)
    with pytest.raises(CompressionError, match=message) as caught:
        methods()
    assert caught.value.where == f"{entry.name} = stranger.module:SPEC"
