"""`check_method` accepts methods that keep the contract and rejects those that break it."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from energy_model.errors import ArgumentError, InfeasibleBudget, PostconditionError
from passes.methods import magnitude, registry
from passes.methods.base import MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.quantize_config import Quantize
from passes.methods.registry import find_method
from passes.rewrite.masks import attach_masks
from transform.result import Compressed
from transform.testing import check_method, contract
from transform.testing.parts import small_models
from transform.testing.resume import Trial, check_killed, check_resumed


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


class CountsInSecret(Sound):
    """Its projection depends on a counter that is not saved."""

    count = 0

    def on_step(self, step, optimizer):
        self.count += 1
        if self.count % 4 == 0:
            self._project(self._run.limits)


class DrawsInSecret(Sound):
    """It draws from the generator of its run, and does not save where that stands."""

    def on_epoch(self, epoch, optimizer):
        super().on_epoch(epoch, optimizer)
        [first, *_] = optimizer.param_groups[0]["params"]
        noise = torch.rand(first.shape, generator=self._run.generator)
        with torch.no_grad():
            first.mul_(1 + noise / 8)


class SavesWhereItDraws(DrawsInSecret):
    """The same, repaired: this one keeps the contract."""

    def state_dict(self):
        return super().state_dict() | {"generator": self._run.generator.get_state()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if state:
            self._run.generator.set_state(state["generator"])


class SavesASet(Sound):
    def state_dict(self):
        return super().state_dict() | {"seen": {1, 2}}


class SavesADeepArray(Sound):
    def state_dict(self):
        return super().state_dict() | {"sums": [{"first": np.zeros(2)}]}


class SavesAList(Sound):
    def state_dict(self):
        return [super().state_dict()]

    def load_state_dict(self, state):
        super().load_state_dict(state[0])


class TakesNothingBack(Sound):
    def load_state_dict(self, state):
        pass


class TakesNothingAtAll(Sound):
    def load_state_dict(self, state):
        if state["step"]:
            raise KeyError("start")


class IsNotDeterministicInTraining(Sound):
    count = itertools.count()

    def on_epoch(self, epoch, optimizer):
        super().on_epoch(epoch, optimizer)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].mul_(1 + next(self.count) / 8)


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


@pytest.fixture(autouse=True)
def few_objects_to_collect():
    """Every run ends in a full garbage collection, which would look through all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def without_onnx(monkeypatch):
    """Without the ONNX file of a finished run, which takes longer than the training."""
    save = Compressed.save

    def saved(self, directory, *, onnx=False):
        return save(self, directory)

    monkeypatch.setattr(Compressed, "save", saved)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("method", "kill"),
    [
        ("energy", True),
        ("magnitude", False),
        (magnitude.Magnitude(scope="layer"), False),
        ("quantize", True),
        ("dsr_plus", True),
        ("hashed", True),
        (Quantize(weights="auto", activations=None), False),
    ],
)
def test_our_own_methods_keep_the_contract(method, kill):
    check_method(method, kill=kill)


@pytest.mark.slow
def test_it_is_there_after_import_transform():
    code = "import transform; transform.testing.check_method"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_the_way_of_these_tests_to_register_a_method_is_sound(monkeypatch):
    register(monkeypatch, Sound, serves=("nonzeros",))
    before = dict(vars(Sound))
    check_method("tried")
    assert dict(vars(Sound)) == before


@pytest.mark.spread(1)
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
        (CountsInSecret, r"stopped and resumed differs .* weights, .*: state_dict\(\) must hold"),
        pytest.param(
            DrawsInSecret, r"stopped and resumed differs .* weights, .*: state_dict\(\) must hold"
        ),
        pytest.param(
            SavesASet,
            r"state_dict\(\) holds at 'seen' what no checkpoint can: set cannot be",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SavesADeepArray,
            "holds at 'sums' what no checkpoint can: ndarray cannot be",
            marks=pytest.mark.slow,
        ),
        pytest.param(SavesAList, r"state_dict\(\) is no dict", marks=pytest.mark.slow),
        (TakesNothingBack, r"load_state_dict\(\) does not take back"),
        pytest.param(
            TakesNothingAtAll,
            "a stopped run cannot be resumed: .* KeyError",
            marks=pytest.mark.slow,
        ),
        (IsNotDeterministicInTraining, "in training, the same seed gives another result"),
        (RefusesWhatIsPossible, "InfeasibleBudget for a value above the tightest"),
    ],
)
def test_a_method_that_breaks_the_contract_is_rejected(monkeypatch, method, clause):
    register(monkeypatch, method)
    with pytest.raises(PostconditionError, match=clause) as caught:
        check_method("tried")
    assert "tried" in caught.value.where


@pytest.mark.slow
def test_a_method_that_saves_all_it_needs_is_accepted(monkeypatch):
    register(monkeypatch, SavesWhereItDraws, serves=("nonzeros",))
    check_method("tried")


def test_a_method_that_serves_nothing_is_rejected(monkeypatch):
    register(monkeypatch, Sound, serves=())
    with pytest.raises(PostconditionError, match="serves no limit"):
        check_method("tried")


def trial(name, key="energy"):
    """A method, and a small training run of it."""
    spec, config = find_method(name)
    model, example = next(small_models())
    return spec, Trial(config, model, example, f"{key}<=60%")


PROCESS_BOUND = """
from passes.methods import magnitude
from passes.methods.base import MethodSpec

TABLE = {}


class Handles(magnitude.MagnitudePruning):
    def state_dict(self):
        TABLE[self._step] = super().state_dict()
        return {"handle": self._step}

    def load_state_dict(self, state):
        super().load_state_dict(TABLE[state["handle"]])


SPEC = MethodSpec("handles", magnitude.Magnitude, Handles, frozenset({"nonzeros"}), "a test")
"""


@pytest.mark.slow
def test_a_state_that_dies_with_its_process_is_found_by_sigkill_alone(tmp_path, monkeypatch):
    """What is saved is a handle; what it stands for is not."""
    (tmp_path / "process_bound.py").write_text(PROCESS_BOUND)
    about = tmp_path / "process_bound-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: process-bound\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[transform.methods]\nhandles = process_bound:SPEC\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec, run = trial("handles", "nonzeros")
    check_resumed(spec, run, "handles")
    with pytest.raises(PostconditionError, match=r"a killed run cannot .*KeyError"):
        check_killed(run, spec, "handles")


@pytest.mark.slow
def test_sigkill_needs_a_method_that_a_fresh_process_finds(monkeypatch):
    register(monkeypatch, Sound, serves=("nonzeros",))
    spec, run = trial("tried", "nonzeros")
    with pytest.raises(ArgumentError, match="a fresh process does not find") as caught:
        check_killed(run, spec, "tried")
    assert "leave kill=True out" in caught.value.remedy


def test_kill_adds_the_check(monkeypatch):
    register(monkeypatch, Sound, serves=("nonzeros",))
    killed = []
    monkeypatch.setattr(contract, "_check_run", lambda *arguments: None)
    monkeypatch.setattr(contract, "check_resumed", lambda spec, run, where: run)
    monkeypatch.setattr(
        contract, "check_killed", lambda run, spec, where: killed.append(run.budget)
    )
    check_method("tried")
    assert killed == []
    check_method("tried", kill=True)
    assert killed == ["nonzeros<=60%"]


@pytest.mark.slow
def test_a_method_that_draws_from_the_global_generators_disturbs_nobody(monkeypatch):
    register(monkeypatch, DrawsFromTheGlobalGenerators, serves=("nonzeros",))
    states = torch.get_rng_state(), random.getstate()
    check_method("tried")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.slow
def test_a_tightest_value_that_cannot_be_reached_is_rejected(monkeypatch):
    register(monkeypatch, PromisesTooMuch, serves=("energy",))
    with pytest.raises(PostconditionError, match="is not reachable"):
        check_method("tried")


def test_a_configuration_that_forgets_is_rejected(monkeypatch):
    register(monkeypatch, Sound, config=Forgetful)
    with pytest.raises(PostconditionError, match="changes when written and read"):
        check_method("tried")
