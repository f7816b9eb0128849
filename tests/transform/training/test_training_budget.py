"""The budget falls as its closed form says, and holds at the end whatever the loop did."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import batches, examples, nonzeros, plain, run, trained_rows

import transform
from energy_model.budget import Budget
from energy_model.errors import InfeasibleBudget
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.base import Run
from passes.methods.energy_projection import SPEC
from passes.methods.sparsify import Sparsifier
from passes.tracing.trace import trace
from transform.limits import Subject
from transform.pipeline import resolve

WEIGHTS = 176


@pytest.fixture(scope="module")
def ready():
    model = plain()
    graph = trace(model, as_call(model, examples(4)[0]))
    subject = Subject(graph, load_hardware("eyeriss"))
    return graph, subject.costs, resolve(Budget.parse("nonzeros<=50%"), subject)


def scheduled(ready, start, target, steps, **options):
    """A method whose budget falls from `start` to `target` in so many steps."""
    graph, costs, [limit] = ready
    limits = (replace(limit, maximum=target),)
    method = SPEC.build(transform.EnergyProjection(**options))
    setting = Run(one_shot=False, limits=limits, costs=costs, total_steps=steps)
    method.prepare(graph, method.plan(graph, costs, limits, one_shot=False), setting)
    method.load_state_dict(method.state_dict() | {"start": [start]})
    return lambda step: method.limits_at(step)[0].maximum


starts = st.integers(3, 10**12)
counts = st.integers(1, 10**5)
holds = st.floats(0, 1)


@given(
    start=starts,
    share=st.floats(0, 1),
    steps=counts,
    at=st.floats(0, 1),
    hold=holds,
    name=st.sampled_from(["geometric", "linear", "none"]),
)
def test_the_closed_forms(ready, start, share, steps, at, hold, name):
    target, step = max(3, int(start * share)), int(at * steps)
    found = scheduled(ready, start, target, steps, schedule=name, hold=hold)(step)
    falling = max(1, round(steps * (1 - hold)))
    done = min(Fraction(1), Fraction(step, falling))
    expected = float(target)
    if name == "linear":
        expected = float(start + (target - start) * done)
    if name == "geometric":
        expected = math.exp(math.log(start) + math.log(target / start) * float(done))
    assert found == pytest.approx(expected, abs=1.01, rel=1e-9)
    assert target <= found <= start


@given(
    start=starts,
    share=st.floats(0, 1),
    steps=st.integers(1, 60),
    hold=holds,
    name=st.sampled_from(["geometric", "linear", "none"]),
)
def test_the_budget_never_rises_and_ends_at_the_target(ready, start, share, steps, hold, name):
    target = max(3, int(start * share))
    limit = scheduled(ready, start, target, steps, schedule=name, hold=hold)
    found = [limit(step) for step in range(steps + 1)]
    assert all(type(value) is int for value in found)
    assert found == sorted(found, reverse=True)
    assert found[0] == (target if name == "none" else start)
    assert found[-1] == target
    held = [step for step in range(steps + 1) if step >= max(1, round(steps * (1 - hold)))]
    assert {found[step] for step in held} == {target}


def test_a_model_below_its_budget_is_left_there(ready):
    for name in ("geometric", "linear", "none"):
        limit = scheduled(ready, 50, 88, 10, schedule=name)
        assert {limit(step) for step in range(11)} == {88}


def test_without_steps_the_target_holds_from_the_first(ready):
    limit = scheduled(ready, 176, 88, 0)
    assert [limit(1), limit(7)] == [88, 88]


def test_the_schedule_of_the_paper(ready):
    """LeNet-5: 469 batches, 30 epochs, a projection every 10, 20 % (Yang, Zhu, Liu, ICLR 2019)."""
    base = 10**9
    limit = scheduled(ready, base, base // 5, 469 * 30, hold=0.0, interval=10)
    shares = [limit(470 * epoch) / base for epoch in (1, 10, 15, 20, 29, 30)]
    published = [0.94766, 0.58413, 0.44645, 0.34121, 0.21032, 0.2]
    assert shares == pytest.approx(published, abs=5e-6)


def test_several_limits_fall_together():
    result = run(budget="energy<=90%, nonzeros<=40%", train={"epochs": 3, "lr": 0.1})
    assert result.certificate.holds
    assert len(result.certificate.rows) == 2
    assert nonzeros(result.model) <= 70


@pytest.mark.spread(9)
@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize("interval", [1, 2, 50])
@pytest.mark.parametrize("size", [24, 8, 5])
def test_the_budget_holds_for_any_number_of_steps(size, interval, epochs):
    x, y = examples()
    data = list(zip(x.split(size), y.split(size), strict=True))
    method = transform.EnergyProjection(interval=interval)
    train = {"epochs": epochs, "lr": 0.3}
    result = run(data=data, train=train, method=method, valid=batches(), keep_shapes=True)
    assert nonzeros(result.model) == WEIGHTS // 2
    assert result.certificate.holds
    rows = trained_rows(result)
    assert len(rows) == epochs
    assert not rows or rows[-1]["within"]


@pytest.mark.spread(1)
@pytest.mark.parametrize("schedule", ["geometric", "linear", "none"])
@pytest.mark.parametrize("hold", [0.0, 0.3, 1.0])
def test_the_energy_holds_for_every_schedule(schedule, hold):
    method = transform.EnergyProjection(schedule=schedule, hold=hold, interval=4)
    result = run(budget="energy<=60%", train={"epochs": 3, "lr": 0.1}, method=method)
    [row] = result.certificate.rows
    counted = transform.analyze(result.model, examples(1)[0]).total.energy.relaxed
    assert counted == row.reached <= 0.6 * row.base


@pytest.mark.parametrize("method", ["global", "layer"])
def test_magnitude_is_trained_the_same_way(method):
    config = transform.Magnitude(scope=method, interval=2)
    train = {"epochs": 4, "lr": 0.1}
    result = run(method=config, train=train, keep_shapes=True)
    assert result.certificate.holds
    shares = [float((result.model[i].weight != 0).float().mean()) for i in (0, 2)]
    if method == "layer":
        assert shares == pytest.approx([0.5, 0.5], abs=0.02)
    assert nonzeros(result.model) <= WEIGHTS // 2
    untrained = run(method=config, train=False)
    assert not torch.equal(result.model[0].weight, untrained.model[0].weight)
    assert len(trained_rows(result)) == 4


def test_the_scopes_of_magnitude_differ():
    kept = {}
    for scope in ("global", "layer"):
        model = plain()
        with torch.no_grad():
            model[2].weight.mul_(10)
        result = run(model=model, method=transform.Magnitude(scope=scope))
        kept[scope] = int((result.model[2].weight != 0).sum())
    assert kept["global"] > kept["layer"]


def masks_of(monkeypatch, **train):
    """Which weights of the first layer are zero at the end of every epoch."""
    masks, on_epoch = [], Sparsifier.on_epoch

    def noted(self, epoch, optimizer):
        on_epoch(self, epoch, optimizer)
        masks.append(self._graph.module[0].weight == 0)

    monkeypatch.setattr(Sparsifier, "on_epoch", noted)
    run(
        train={"epochs": 5, **train},
        method=transform.EnergyProjection(schedule="none", interval=1),
        budget="nonzeros<=30%",
    )
    return masks


def test_pruned_weights_regrow(monkeypatch):
    masks = masks_of(monkeypatch, lr=0.5)
    assert masks[0].sum() > 60
    regrown = [bool((early & ~late).any()) for early, late in pairwise(masks)]
    assert any(regrown)


def test_without_learning_nothing_regrows(monkeypatch):
    masks = masks_of(monkeypatch, lr=0.0)
    assert all(torch.equal(masks[0], mask) for mask in masks)


def test_nothing_is_kept_at_a_least_share_when_training():
    """In one shot 2 % of every layer stay; training can bring a layer back."""
    model = plain()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    options = {"model": model, "budget": "nonzeros<=20%", "train": {"epochs": 1, "lr": 1e-9}}
    trained, shot = run(**options), run(**options | {"train": False})
    assert int((trained.model[0].weight != 0).sum()) == 1
    assert int((shot.model[0].weight != 0).sum()) == math.ceil(0.02 * 128)


@pytest.mark.parametrize("train", [{"epochs": 0}, {"epochs": 2}])
def test_an_infeasible_budget_is_refused_before_training(train, tmp_path):
    with pytest.raises(InfeasibleBudget, match="asks for 1 "):
        run(budget="nonzeros<=1 weight", train=train, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
