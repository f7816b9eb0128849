"""Limits on the archive: its real bytes decide, together with nominal bits; here by a formula."""

from __future__ import annotations

import math

import pytest
import torch
from joint_problem import X, check_written, costs_of, method_of, nominal, small, traced

from energy_model.budget import Budget
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.coding.tensor import tensor_bits
from passes.methods.base import Run
from passes.methods.joint import rates
from passes.methods.joint.finish import Finish
from passes.methods.phases import Phase

# Seconds each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

REST = 150
STEPS = 12


def measured(graph):
    """Stands for the bytes of a finished model's archive."""
    assert not any("parametrizations" in name for name, _ in graph.module.named_modules())
    bits = sum(tensor_bits(graph.weight(site).numpy()) for site in graph.compressible)
    return REST + math.ceil(bits / 8)


def limits_of(budget):
    return tuple(
        ResolvedLimit(limit, 10_000, limit.resolve(10_000)) for limit in Budget.parse(budget)
    )


def compressed(budget, *, trained=False, **options):
    """A finished graph and the plan."""
    graph, limits = traced(small(), X), limits_of(budget)
    run = Run(
        limits=limits, archive=measured, one_shot=not trained, total_steps=STEPS, epoch_steps=4
    )
    method = method_of(**{"project_every": 2, "dual_every": 4} | options)
    method.observe(graph, run)
    plan = method.plan(graph, costs_of(graph), limits, one_shot=not trained)
    method.prepare(graph, plan, run)
    if trained:
        train(graph, method)
    method.finalize(graph, run)
    return graph, plan


def train(graph, method):
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.02, momentum=0.9)
    targets = torch.arange(2)
    graph.module.train()
    method.on_phase_start(Phase())
    for step in range(1, STEPS + 1):
        loss = torch.nn.functional.cross_entropy(graph.runnable(X), targets)
        optimizer.zero_grad()
        method.on_loss(loss, None, None).backward()
        method.on_gradients(optimizer)
        optimizer.step()
        method.on_step(step, optimizer)
        if step % 4 == 0:
            method.on_epoch(step // 4 - 1, optimizer)
    graph.module.eval()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"mode": "prune"}, {"mode": "quantize"}, {"levels": "uniform"}], ids=str
)
def test_the_real_bytes_fit_and_little_is_left(options, trained):
    budget = 270
    graph, plan = compressed(f"archive<={budget} B", trained=trained, **options)
    found = measured(graph)
    assert found <= budget
    check_written(graph)
    if not trained:
        assert plan.reached["archive"] == found
        if not options.get("levels"):
            assert found >= 0.85 * budget


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_cheaper_than_was_thought_leaves_nothing_unused(trained, monkeypatch):
    honest = rates._layer_bits
    monkeypatch.setattr(rates, "_layer_bits", lambda mask, bits: 2 * honest(mask, bits))
    graph, _ = compressed("archive<=215 B", trained=trained, min_bits=3, max_bits=3)
    assert 205 <= measured(graph) <= 215


@pytest.mark.parametrize(
    ("ladder", "finetune"), [(0.0, 0.0), (0.0, 0.3), (0.0, 1.0), (0.4, 0.0), (0.4, 0.6), (1.0, 0.0)]
)
def test_a_budget_is_corrected_before_masks_are_fixed(ladder, finetune, monkeypatch):
    asked = []
    once = Finish.recalibrated

    def recalibrated(self, training, masks):
        asked.append(training.step)
        return once(self, training, masks)

    monkeypatch.setattr(Finish, "recalibrated", recalibrated)
    compressed("archive<=270 B", trained=True, ladder=ladder, finetune=finetune)
    assert asked[0] == 0
    assert all(ladder / 2 <= step / STEPS <= 1 - finetune for step in asked[1:])
    assert len(asked) > 1 or ladder / 2 >= 1 - finetune


@pytest.mark.parametrize("mode", ["both", "quantize"])
def test_room_for_everything_is_used(mode):
    for trained in (False, True):
        graph, _ = compressed("archive<=9000 B", trained=trained, mode=mode, freeze_bits=1.0)
        assert all(book.bits > 4 for book in graph.codebooks.values()), trained


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"mode": "quantize"}, {"max_bits": 2}, {"honest": False}], ids=str
)
def test_nominal_bits_are_limited_besides(options, trained):
    budget = {"quantize": 200}.get(options.get("mode"), 100)
    graph, plan = compressed(
        f"archive<=330 B, weight_bits<={budget} bit", trained=trained, **options
    )
    assert nominal(graph) <= budget
    assert measured(graph) <= 330
    if not trained:
        assert plan.reached["weight_bits"] <= budget
        assert nominal(graph) >= 0.7 * budget or options


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("mode", ["both", "prune", "quantize"])
def test_what_cannot_be_reached_says_what_can(mode, trained):
    with pytest.raises(InfeasibleBudget) as caught:
        compressed(f"archive<={REST - 20} B", mode=mode, trained=trained)
    error = caught.value
    assert (error.limit, error.asked) == ("archive", REST - 20)
    assert error.tightest > error.asked
    if mode == "both":
        assert error.tightest <= REST + 4
    graph, _ = compressed(f"archive<={int(error.tightest)} B", mode=mode, trained=trained)
    assert measured(graph) <= error.tightest


def test_levels_and_norms_are_short_unless_it_is_told():
    for options, bits in (({}, 9), ({"significand": 5}, 5)):
        graph, _ = compressed("archive<=330 B", **options)
        for book in graph.codebooks.values():
            mantissa = torch.frexp(book.levels.double())[0] * 2**bits
            assert torch.equal(mantissa, mantissa.round())


def test_without_a_way_to_write_one_it_is_refused():
    graph, limits = traced(small(), X), limits_of("archive<=300 B")
    with pytest.raises(PreconditionError, match="a way to write one"):
        method_of().observe(graph, Run(limits=limits))
