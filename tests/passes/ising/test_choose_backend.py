"""The fastest back end of those that agree with the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scoring_nets import built, gated, population, seeded
from structure_nets import image
from torch import nn

from energy_model.errors import ArgumentError
from passes.ising.agreement import Trial, relative_difference
from passes.ising.choose_backend import BACKENDS, BackendChoice, choose_backend, make_scorings
from passes.ising.compact_scoring import CompactScoring
from passes.ising.loop_scoring import LoopScoring
from passes.methods.ising.candidates import Candidates
from passes.methods.ising.config import Ising


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Fake:
    """Takes some seconds, and is off by something; there is no model to run in other precision."""

    gates = None

    def __init__(self, clock, seconds, offset=0.0, error=None):
        self.clock, self.seconds, self.offset, self.error = clock, seconds, offset, error

    def outputs(self, population, call, norms="running"):
        self.clock.now += self.seconds
        if self.error is not None:
            raise self.error
        return [torch.full((2, 3), 2.0 + self.offset, dtype=torch.float64) for _ in population]


def chosen(*, forced=None, **fakes):
    gates, _, call = gated(built("Residual"), image())
    clock = Clock()
    scorings = {name: Fake(clock, *given) for name, given in fakes.items()}
    return choose_backend(scorings, population(gates, 3), call, forced=forced, clock=clock)


def test_the_fastest_is_chosen_and_the_times_are_told():
    choice = chosen(loop=(3.0,), fold=(5.0,), compact=(1.5,))
    assert choice == BackendChoice("compact", {"loop": 3.0, "fold": 5.0, "compact": 1.5}, {})


def test_those_that_fail_or_differ_are_dropped_with_the_reason():
    choice = chosen(
        loop=(3.0,),
        fold=(1.0, 3e-4),
        vmap=(1.0, 0.0, RuntimeError("no rule\nat all")),
        compact=(2.0, 1e-4),
    )
    assert choice.name == "compact"
    assert choice.dropped == {
        "fold": "differs from the reference by 1.5e-04 of its largest output",
        "vmap": "RuntimeError: no rule",
    }


def test_the_reference_cannot_fail():
    with pytest.raises(RuntimeError, match="broken"):
        chosen(loop=(1.0, 0.0, RuntimeError("broken")), fold=(1.0,))


def test_a_forced_choice_is_not_measured():
    assert chosen(loop=(1.0, 0.0, RuntimeError()), fold=(2.0,), forced="fold") == BackendChoice(
        "fold", {}, {}
    )
    with pytest.raises(ArgumentError, match=r"no back end 'gpu'. Use one of loop, fold"):
        chosen(loop=(1.0,), fold=(1.0,), forced="gpu")


def test_why_one_cannot_be_used():
    gates, _, call = gated(built("Residual"), image())
    clock = Clock()
    right = Fake(clock, 1.0)
    for fake, words in (
        (Fake(clock, 1.0), ""),
        (Fake(clock, 1.0, 3e-4), "differs from the reference by 1.5e-04 of its largest output"),
        (Fake(clock, 1.0, 0.0, RuntimeError("no rule\nat all")), "RuntimeError: no rule"),
    ):
        assert Trial(population(gates, 2), call).why_not(fake, right) == words
    assert clock.now == 6.0  # each is run once
    with pytest.raises(RuntimeError):
        broken = Fake(clock, 1.0, 0.0, RuntimeError("broken"))
        Trial(population(gates, 2), call).why_not(right, broken)


def test_on_a_cpu_the_cut_network_runs_unless_it_differs(monkeypatch):
    gates, _, call = gated(built("Residual"), image(4))
    states = population(gates, 3)
    found = Candidates(gates, Ising())
    cut = found.outputs(states, call)
    assert found.backend == "compact"
    monkeypatch.setattr(CompactScoring, "_outputs", lambda *given: [torch.zeros(2)] * len(states))
    other = Candidates(gates, Ising())
    plain = other.outputs(states, call)
    assert other.backend == "loop"
    assert relative_difference(cut, plain) < 1e-3


def test_a_real_model_offers_all():
    gates, _, call = gated(built("Residual"), image(4))
    scorings = make_scorings(gates)
    assert tuple(scorings) == BACKENDS
    choice = choose_backend(scorings, population(gates, 3), call, norms="batch")
    assert set(choice.seconds) == set(BACKENDS)
    assert not choice.dropped
    assert choice.name in BACKENDS


def test_samples_that_mix_are_not_folded():
    class Mixing(nn.Module):
        """The mean over the batch is part of every output."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x):
            x = self.b(torch.relu(self.a(x)))
            return x - x.mean(0, keepdim=True)

    class Baked(Mixing):
        def forward(self, x):
            x = self.b(torch.relu(self.a(x)))
            return x.reshape(4, 5)

    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind, why in ((Mixing, "differs"), (Baked, "RuntimeError")):
        gates, _, call = gated(seeded(kind), x)
        choice = choose_backend(make_scorings(gates), population(gates, 3), call)
        assert set(choice.dropped) == {"fold"}
        assert choice.dropped["fold"].startswith(why)


class Off(LoopScoring):
    """Off by more than may be, in single precision only or in any."""

    always = True

    def _outputs(self, population, call, norms):
        found = super()._outputs(population, call, norms)
        off = self.always or found[0].dtype == torch.float32
        return [each * (1 + 5e-5 * off) for each in found]


class OffBySingles(Off):
    always = False


class SinglesOnly(nn.Module):
    """Adds what has 32 bits, which linear layers of 64 do not take."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).float())


@pytest.mark.parametrize(
    ("kind", "model", "why"),
    [
        (
            Off,
            None,
            "differs from the reference by 5.0e-05 of its largest output in double precision",
        ),
        (OffBySingles, None, ""),
        (Off, SinglesOnly, ""),
    ],
)
def test_what_may_be_rounding_is_compared_again_in_double_precision(kind, model, why):
    if model is None:
        gates, _, call = gated(built("Residual"), image(4), dtype=torch.float32)
    else:
        x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
        gates, _, call = gated(seeded(model), x, dtype=torch.float32)
    before = {name: value.clone() for name, value in gates.module.state_dict().items()}
    trial = Trial(population(gates, 2), call)
    assert trial.why_not(kind(gates), LoopScoring(gates)) == why
    after = gates.module.state_dict()
    assert all(after[n].dtype == v.dtype and torch.equal(after[n], v) for n, v in before.items())


@dataclass
class Pair:
    logits: torch.Tensor
    other: int


def test_differences_of_any_outputs():
    one, nan = torch.ones(3), torch.tensor([1.0, torch.nan, 2.0])
    assert relative_difference([one, {"a": one}], [one, {"a": one}]) == 0
    assert relative_difference([{"a": (one * 4,)}], [{"a": (one * 5,)}]) == pytest.approx(0.2)
    assert relative_difference(Pair(one, 2), Pair(one * 2, 2)) == 0.5
    assert relative_difference(nan, nan) == 0
    assert relative_difference(nan, one) == relative_difference(one, nan) == torch.inf
    assert relative_difference(one, one[:2]) == torch.inf
    assert relative_difference([one], [one, one]) == torch.inf
    assert relative_difference(one * torch.inf, one * torch.inf) == 0


def test_half_precision_is_compared_at_its_digits():
    gates, _, call = gated(built("Residual"), image(4), dtype=torch.bfloat16)
    choice = choose_backend(make_scorings(gates), population(gates, 3), call)
    assert set(choice.seconds) == set(BACKENDS)
