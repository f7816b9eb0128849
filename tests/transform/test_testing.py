"""`check_method` accepts methods that keep the contract and rejects those that break it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from energy_model.errors import InfeasibleBudget, PostconditionError
from passes.methods import magnitude, registry
from passes.methods.base import MethodSpec
from passes.methods.config import MethodConfig
from passes.rewrite.masks import attach_masks
from transform.testing import check_method


class Sound(magnitude.MagnitudePruning):
    """Keeps the contract; what follows breaks one clause of it each."""


class ChangesTheModelInPlan(Sound):
    def plan(self, graph, costs, limits, **options):
        with torch.no_grad():
            graph.parameter(graph.sites[0])[0] += 1.0
        return super().plan(graph, costs, limits, **options)


class PlansDifferentlyEachTime(Sound):
    count = itertools.count()

    def plan(self, graph, costs, limits, **options):
        plan = super().plan(graph, costs, limits, **options)
        return replace(plan, details={"call": next(self.count)})


class IsNotDeterministic(Sound):
    count = itertools.count()

    def finalize(self, graph, run):
        super().finalize(graph, run)
        with torch.no_grad():
            graph.parameter(graph.sites[0]).mul_(1 + next(self.count) / 8)


class MissesItsBudget(Sound):
    def prepare(self, graph, plan, run):
        more = [replace(row, keep=min(row.keep + 1, row.size)) for row in plan.rows]
        super().prepare(graph, replace(plan, rows=tuple(more)), run)


class LeavesParametrizations(Sound):
    def finalize(self, graph, run):
        super().finalize(graph, run)
        [site, *_] = graph.compressible
        attach_masks(graph, {site.name: torch.ones_like(graph.weight(site), dtype=torch.bool)})


class DrawsFromTheGlobalGenerators(Sound):
    def prepare(self, graph, plan, run):
        torch.rand(1)
        random.random()
        super().prepare(graph, plan, run)


class LeavesInfinities(Sound):
    def finalize(self, graph, run):
        super().finalize(graph, run)
        with torch.no_grad():
            graph.parameter(graph.sites[0]).mul_(1e30).mul_(1e30)


class ChangesTheMode(Sound):
    def finalize(self, graph, run):
        super().finalize(graph, run)
        graph.module.train(not graph.module.training)


class PromisesTooMuch(Sound):
    def plan(self, graph, costs, limits, **options):
        try:
            return super().plan(graph, costs, limits, **options)
        except InfeasibleBudget as error:
            error.tightest -= 1
            raise


class AddsToTheState(Sound):
    def finalize(self, graph, run):
        super().finalize(graph, run)
        graph.module.register_buffer("mask", torch.zeros(1))


class RefusesWhatIsPossible(Sound):
    def plan(self, graph, costs, limits, **options):
        [limit] = limits
        raise InfeasibleBudget("no", limit=limit.key, asked=limit.maximum, tightest=limit.maximum)


@dataclass(frozen=True)
class Forgetful(MethodConfig):
    """A configuration that is not the same after it was written and read."""

    strength: int = 1
    noise: object = field(default_factory=object)

    def to_dict(self):
        return {"config": type(self).__name__, "strength": self.strength}


def register(monkeypatch, method, config=magnitude.Magnitude, serves=("energy", "nonzeros")):
    spec = MethodSpec("tried", config, method, frozenset(serves), "a test")
    entry = SimpleNamespace(name="tried", value="a test", load=lambda: spec)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


@pytest.mark.parametrize("method", ["energy", "magnitude", magnitude.Magnitude(scope="layer")])
def test_our_own_methods_keep_the_contract(method):
    check_method(method)


def test_it_is_there_after_import_transform():
    code = "import transform; transform.testing.check_method"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_way_of_these_tests_to_register_a_method_is_sound(monkeypatch):
    register(monkeypatch, Sound, serves=("nonzeros",))
    check_method("tried")


@pytest.mark.parametrize(
    ("method", "clause"),
    [
        (ChangesTheModelInPlan, r"plan\(\) changes the model"),
        (PlansDifferentlyEachTime, r"plan\(\) differs between two calls"),
        (IsNotDeterministic, "the same seed gives another result"),
        (MissesItsBudget, "allows .* the finished model has"),
        (LeavesParametrizations, "still has parametrized weights"),
        (LeavesInfinities, "not finite"),
        (ChangesTheMode, "not in the mode of the original"),
        (AddsToTheState, "state-dict keys"),
        (RefusesWhatIsPossible, "InfeasibleBudget for a value above the tightest"),
    ],
)
def test_a_method_that_breaks_the_contract_is_rejected(monkeypatch, method, clause):
    register(monkeypatch, method)
    with pytest.raises(PostconditionError, match=clause) as caught:
        check_method("tried")
    assert "tried" in caught.value.where


def test_a_method_that_draws_from_the_global_generators_disturbs_nobody(monkeypatch):
    register(monkeypatch, DrawsFromTheGlobalGenerators, serves=("nonzeros",))
    states = torch.get_rng_state(), random.getstate()
    check_method("tried")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_a_tightest_value_that_cannot_be_reached_is_rejected(monkeypatch):
    register(monkeypatch, PromisesTooMuch, serves=("energy",))
    with pytest.raises(PostconditionError, match="is not reachable"):
        check_method("tried")


def test_a_configuration_that_forgets_is_rejected(monkeypatch):
    register(monkeypatch, Sound, config=Forgetful)
    with pytest.raises(PostconditionError, match="changes when written and read"):
        check_method("tried")
