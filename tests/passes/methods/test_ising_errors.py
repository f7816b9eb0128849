"""Bad input to the search over keep-states: a typed error, or the fallback that is stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ising_nets import Searching, compressed, conv_data, conv_net, run_of
from torch import nn

import transform
from energy_model.errors import (
    ArgumentError,
    InfeasibleBudget,
    PreconditionError,
    TrainingError,
    UnsupportedBudget,
)
from passes.inputs import as_call
from passes.methods.ising import Ising, IsingPruning
from passes.tracing.trace import trace

EXAMPLE = torch.zeros(2, 2, 6, 6)
ONE_CLASS = [(x, torch.full_like(y, 2)) for x, y in conv_data(4)]
UNLABELLED = [x for x, _ in conv_data(4)]


class Broken(nn.Module):
    """Returns NaN, when it is told to."""

    def __init__(self, when) -> None:
        super().__init__()
        self.net, self.when = conv_net(), when

    def forward(self, x):
        return self.net(x) * self.when


@pytest.mark.slow
def test_samples_of_one_class_before_training():
    with pytest.raises(PreconditionError, match="of class 2"):
        compressed(data=ONE_CLASS)
    assert compressed(data=ONE_CLASS, search={"energy": "distill"}).certificate.holds


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_samples_of_one_class_in_training(share):
    training = Searching(Ising(states=4, search_share=share), data=ONE_CLASS, steps=5)
    with pytest.raises(PreconditionError, match="two classes"):
        training.steps(5)
    assert training.number <= 5


def test_no_labels_and_no_data():
    with pytest.raises(PreconditionError, match="labelled") as error:
        compressed(data=UNLABELLED)
    assert "distill" in error.value.remedy
    with pytest.raises(PreconditionError, match="labelled"):
        compressed(data=UNLABELLED, search={"energy": lambda outputs, y: 0.0})
    with pytest.raises(PreconditionError, match="taylor"):
        compressed(data=UNLABELLED, search={"energy": "distill", "importance": "taylor"})
    for energy in ("margin", "distill"):
        with pytest.raises(PreconditionError, match=energy):
            transform.compress(
                conv_net(), "macs<=50%", example_inputs=EXAMPLE, method=Ising(energy=energy),
                train=False, progress="none",
            )  # fmt: skip


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "options",
    [{}, {"search": "de+ls"}, {"energy": "distill"}, {"energy": "combined", "search": "ratio-de"}],
)
def test_no_candidate_with_finite_logits(options):
    with pytest.raises((PreconditionError, TrainingError), match="finite"):
        compressed(Broken(float("nan")), search=options)


def test_a_weight_that_is_not_finite():
    model = conv_net()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    for energy in ("ising", "margin"):
        with pytest.raises((PreconditionError, ArgumentError), match="finite"):
            compressed(model, search={"energy": energy})


@pytest.mark.parametrize("search", ["de", "de+ls"])
def test_in_training_logits_that_become_nan_stop_it(search):
    training = Searching(Ising(states=4, search=search, search_share=1.0))
    training.steps(2)
    with torch.no_grad():
        training.graph.module[8].bias.fill_(float("nan"))
    training.backward()
    with pytest.raises((PreconditionError, TrainingError), match="finite"):
        training.method.on_step(3, training.optimizer)


def test_candidates_with_nan_only_lose():
    """Only what keeps fewer than so many channels has a finite energy."""
    seen = []

    def energy(outputs, targets):
        value = float(outputs.norm())
        seen.append(value)
        return value if len(seen) == 1 or value < seen[0] else float("nan")

    result = compressed(search={"energy": energy})
    assert result.certificate.holds
    told = result.plan.details["search"]
    assert told["energy_best"] <= seen[0]
    assert told["generation"] == 6


@pytest.mark.spread(1)
@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {"budget": "macs<=1%"},
        {"budget": "macs<=20%", "search": {"max_removed": 0.3}},
        {"budget": "params<=40%, macs<=2%", "search": {"channel_multiple": 8}},
    ],
)
def test_an_infeasible_minimum_says_what_is_reachable(options, train):
    with pytest.raises(InfeasibleBudget) as error:
        compressed(train=train, epochs=1, **options)
    refused = error.value
    assert refused.tightest > refused.asked
    options = options | {"budget": {refused.limit: int(refused.tightest)}}
    result = compressed(train=train, epochs=1, **options)
    assert result.certificate.rows[0].reached == refused.tightest
    with pytest.raises(InfeasibleBudget):
        compressed(train=train, **options | {"budget": {refused.limit: int(refused.tightest) - 1}})


def test_all_layers_left_alone():
    with pytest.raises(InfeasibleBudget) as error:
        compressed(layers={"0": False, "3": False, "8": False})
    assert error.value.tightest > error.value.asked


@pytest.mark.slow
def test_frozen_models_are_searched_and_not_trained():
    model = conv_net().requires_grad_(False)
    for search in ({}, {"search": "de+ls", "energy": "combined"}):
        result = compressed(model, search=search)
        assert result.certificate.holds
        assert not any(p.requires_grad for p in result.model.parameters())
    with pytest.raises(ArgumentError, match="frozen"):
        compressed(model, train=True)


def test_what_no_search_can_meet_is_refused():
    with pytest.raises(UnsupportedBudget):
        compressed(budget="archive<=50%")


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("energy", "error", "words"),
    [
        (lambda outputs, y: outputs, ArgumentError, "one number"),
        (lambda outputs, y: "low", ArgumentError, "one number"),
        (lambda outputs, y: float("nan"), PreconditionError, "finite"),
    ],
)
def test_functions_that_are_no_energies(energy, error, words):
    with pytest.raises(error, match=words):
        compressed(search={"energy": energy})


def test_swaps_by_gradients_need_an_energy_with_one():
    def energy(outputs, targets):
        return float(outputs.detach().mean())

    with pytest.raises(ArgumentError, match="depends on the outputs"):
        compressed(search={"energy": energy, "search": "de+ls"})


def test_targets_that_are_no_classes():
    data = [(x, torch.rand(len(x), 4)) for x, _ in conv_data(3)]
    with pytest.raises(ArgumentError, match="classes"):
        compressed(data=data)
    own = compressed(data=data, search={"energy": nn.functional.mse_loss})
    assert own.certificate.holds


def test_batches_of_one_sample_tell_nothing():
    data = [(x[:1], y[:1]) for x, y in conv_data(6)]
    first, second = conv_net()[0], conv_net()[3]
    model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(576, 4))
    config = Ising(states=4, search_share=1.0)
    training = Searching(config, model=model, data=data, budget="macs<=60%", steps=3)
    with pytest.raises(PreconditionError, match="two classes"):
        training.steps(3)


def test_prepare_without_observe():
    graph = trace(conv_net(), as_call(conv_net(), EXAMPLE))
    run = run_of(graph, conv_data(), "macs<=50%", steps=4)
    method = IsingPruning(Ising())
    method.observe(graph, run)
    plan = method.plan(graph, run.costs, run.limits, one_shot=False)
    with pytest.raises(PreconditionError, match="observe"):
        IsingPruning(Ising()).prepare(graph, plan, replace(run, costs=None))


@pytest.mark.parametrize("search", ["ratio-de", "de", "de+ls"])
def test_an_energy_that_is_no_number_of_some_states_lets_these_lose(search):
    config = Ising(
        states=4,
        search=search,
        energy=lambda outputs, _: (outputs.mean() + 0.02).log(),
        anneal=False,
        search_share=1.0,
    )
    training = Searching(config, steps=12)
    training.steps(12)
    assert training.number == 12


@pytest.mark.parametrize(
    "energy", [lambda outputs, _: torch.tensor(outputs.detach().numpy().mean()), lambda o, _: 1.0]
)
def test_an_energy_without_a_gradient_is_searched_without_swaps_alone(energy):
    assert compressed(search={"energy": energy}).certificate.holds
    with pytest.raises(ArgumentError, match="has no gradient by the outputs") as caught:
        compressed(search={"energy": energy, "search": "de+ls"})
    assert "'ratio-de'" in caught.value.remedy


class AcrossSamples(nn.Module):
    """One sample's outputs depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x):
        y = self.net(x)
        return y - y.mean(0)


def test_a_named_back_end_that_computes_something_else_is_refused():
    with pytest.raises(PreconditionError, match=r"the back end 'fold' cannot run .* differs") as e:
        compressed(AcrossSamples(), search={"backend": "fold"})
    assert "'auto'" in e.value.remedy
    assert compressed(AcrossSamples(), search={"backend": "compact"}).certificate.holds


class Judged(nn.Module):
    """An energy with batch norms of its own, which stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4).eval()
        self.norm.running_var.fill_(100.0)
        self.seen: list[float] = []

    def forward(self, outputs, _targets):
        judged = self.norm(outputs)
        self.seen.append(float((judged.detach() / outputs.detach()).median()))
        return judged.square().mean()


def test_the_batch_norms_of_an_energy_are_its_own():
    judge = Judged()
    assert compressed(search={"energy": judge, "search": "de+ls"}).certificate.holds
    assert judge.seen
    assert judge.seen == pytest.approx([0.1] * len(judge.seen), rel=1e-3)
