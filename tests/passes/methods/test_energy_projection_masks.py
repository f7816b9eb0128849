"""The phases of an energy projection with masks, its hooks by hand, and its configuration."""

from __future__ import annotations

import math

import pytest
import torch
from lenet_problem import costs_of, limits_of, traced, values_of
from torch import nn

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.graph import LayerRule
from passes.methods.base import Run
from passes.methods.energy_projection import SPEC, EnergyProjection
from passes.methods.phases import Phase, PhaseEnd

STEPS = 20


def conv_graph():
    generator = torch.Generator().manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(144, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return traced(model.eval(), torch.randn(2, 2, 8, 8, generator=generator))


def started(budget="energy<=70%", graph=None, **options):
    """A prepared method, its run and its graph."""
    graph = conv_graph() if graph is None else graph
    config = EnergyProjection(**{"input_mask": True, "mask_keep": (0.8, 0.6)} | options)
    limits = limits_of(graph, budget)
    run = Run(one_shot=False, limits=limits, costs=costs_of(graph), total_steps=STEPS)
    method = SPEC.build(config)
    plan = method.plan(graph, run.costs, limits, one_shot=False)
    method.prepare(graph, plan, run)
    return method, run, graph


def optimizer_of(graph):
    return torch.optim.SGD(graph.module.parameters(), lr=0.1)


def disturb(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator) - 0.1)


def run_phase(method, graph, phase, seed=0):
    """All hooks of a phase; what is trained is changed at random before each step."""
    optimizer = optimizer_of(graph)
    method.on_phase_start(phase)
    for step in range(1, STEPS + 1):
        disturb(phase.tensors or [graph.weight(s) for s in graph.sites], seed + step)
        generator = torch.Generator().manual_seed(step)
        for tensor in phase.tensors or ():
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        method.on_gradients(optimizer)
        method.on_step(step, optimizer)
    method.on_epoch(0, optimizer)
    trained = state_of(graph)
    method.on_phase_end(phase)
    return trained


def state_of(graph):
    return {key: value.clone() for key, value in graph.runnable.state_dict().items()}


def names(method, metrics):
    """The names of all phases, where those of weights end with these metrics in turn."""
    left, ended = list(metrics), []
    while phase := method.next_phase(tuple(ended)):
        metric = left.pop(0) if phase.name == "weights" and left else None
        ended.append(PhaseEnd(phase.name, metric))
        assert len(ended) < 30
    return "".join(end.name[0] for end in ended)


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
ORDERS = [
    ("weights", True, RISING, "wmwmw"),
    ("masks", True, RISING, "mwmw"),
    ("weights", True, [0.5, 0.5], "wmw"),
    ("weights", True, [0.5, 0.6, 0.6], "wmwmw"),
    ("weights", True, [0.5, 0.4], "wmw"),
    ("weights", False, [0.5, 0.4], "wmwmw"),
    ("weights", True, [], "wmwmw"),
    ("weights", True, [None, None, None], "wmwmw"),
    ("weights", True, [0.5, None, 0.5], "wmwmw"),
    ("masks", True, [0.5, 0.5], "mwmw"),
]


@pytest.mark.spread(6)
@pytest.mark.parametrize(("start", "stop_early", "metrics", "expected"), ORDERS)
def test_phases_alternate_until_they_stop_to_improve(start, stop_early, metrics, expected):
    method, _, _ = started(start=start, stop_early=stop_early)
    assert names(method, metrics) == expected


def test_many_alternations_stop_at_the_first_that_is_not_better_than_all():
    method, _, _ = started(mask_keep=(0.9, 0.8, 0.7, 0.6))
    assert names(method, RISING) == "wmwmwmwmw"
    assert names(method, [0.5, 0.6, 0.7, 0.65, 0.9]) == "wmwmwmw"
    method, _, _ = started(mask_keep=(0.9, 0.8, 0.7, 0.6), start="masks")
    assert names(method, RISING) == "mwmwmwmw"
    assert names(method, [0.5, 0.4]) == "mwmw"


def test_without_masks_weights_are_trained_once():
    method, _, _ = started(input_mask=False)
    assert names(method, [0.5]) == "w"
    assert method.next_phase(()) == Phase()


def test_the_phase_of_the_masks_is_trained_as_the_paper_does():
    method, _, graph = started(start="masks", mask_lr=0.02, mask_weight_decay=0.03)
    phase = method.next_phase(())
    assert phase.name == "masks"
    assert not phase.candidate
    assert phase.train["optimizer"] == "adam"
    assert phase.train["schedule"] == "constant"
    assert (phase.train["lr"], phase.train["weight_decay"]) == (0.02, 0.03)
    assert phase.train["warmup_epochs"] == phase.train["min_lr"] == 0
    buffers = dict(graph.runnable.named_buffers())
    assert {id(t) for t in phase.tensors} == {id(buffers[f"input_masks.{n}"]) for n in ("0", "2")}


@pytest.mark.spread(1)
@pytest.mark.parametrize("start", ["weights", "masks"])
@pytest.mark.parametrize("mask_cost", ["energy", "count"])
@pytest.mark.parametrize("mask_score", ["gradient", "value"])
def test_all_phases_keep_their_promises(start, mask_cost, mask_score):
    options = {"mask_cost": mask_cost, "mask_score": mask_score}
    method, run, graph = started(start=start, interval=3, **options)
    masking, ended, shares = method._masking, [], iter((0.8, 0.6))
    prices = masking._prices
    total = sum(p.size if mask_cost == "count" else int(p.sum()) for p in prices)
    total += sum(int(o.sum()) for o in masking._openings)
    while phase := method.next_phase(tuple(ended)):
        before = state_of(graph)
        trained = run_phase(method, graph, phase, seed=100 * len(ended))
        after = state_of(graph)
        changed = {k for k in before if not torch.equal(before[k], trained[k])}
        zeroed = [k for k in before if not torch.equal(trained[k], after[k])]
        if phase.name == "masks":
            assert changed == {"input_masks.0", "input_masks.2"}
            share = next(shares)
            kept = [(t != 0).numpy() for t in masking.tensors]
            pairs = zip(prices, kept, strict=True)
            used = sum(int(k.sum() if mask_cost == "count" else p[k].sum()) for p, k in pairs)
            assert used <= share * total
            assert all(set(t.unique().tolist()) <= {0.0, 1.0} for t in masking.tensors)
            zeroed = [k for k in zeroed if not k.startswith("input_masks")]
        else:
            assert values_of(graph)["energy"] - method.still_saved() <= run.limits[0].maximum
            assert changed == {"0.weight", "2.weight", "4.weight"}
        # What has become useless at the end of a phase is zeroed, and nothing else is touched.
        assert all(torch.equal(after[k][after[k] != 0], trained[k][after[k] != 0]) for k in zeroed)
        again = traced(graph.runnable, torch.zeros(1, 2, 8, 8))
        assert values_of(again) == values_of(graph)
        ended.append(PhaseEnd(phase.name, float(len(ended))))
    assert next(shares, None) is None
    method.finalize(graph, run)
    again = traced(graph.runnable, torch.zeros(1, 2, 8, 8))
    assert values_of(again)["energy"] == values_of(graph)["energy"] <= run.limits[0].maximum


def test_what_the_masks_save_goes_to_the_weights():
    method, run, graph = started()
    budget = run.limits[0].maximum
    run_phase(method, graph, method.next_phase(()))
    first = method._problem_now(run.limits)
    dense = sum(site.activation_energy(run.costs.hardware) for site in graph.sites)
    run_phase(method, graph, method.next_phase((PhaseEnd("weights"),)))
    second = method._problem_now(run.limits)
    masked = sum(site.activation_energy(run.costs.hardware) for site in graph.sites)
    assert masked < dense
    masked -= method.still_saved()
    assert (first.fixed[0], second.fixed[0]) == (dense, masked)
    assert second.capacities[0] == budget - masked > first.capacities[0]
    # The same weights, projected with either capacity.
    disturb([graph.weight(s) for s in graph.sites], 7)
    kept = [sum(method.allocation(method._problem_now(run.limits)).counts)]
    for tensor in method._masking.tensors:
        tensor.fill_(1.0)
    method._masking.refresh()
    kept.append(sum(method.allocation(method._problem_now(run.limits)).counts))
    assert kept[0] > kept[1]


def test_the_share_falls_gradually():
    options = {"mask_keep": (0.5, 0.2), "hold": 0.5, "interval": 1, "mask_cost": "count"}
    method, _, graph = started(start="masks", **options)
    masking, total = method._masking, sum(p.size for p in method._masking._prices)
    for expected in ((1.0, 0.5), (0.5, 0.2)):
        phase = method._mask_phase()
        method.on_phase_start(phase)
        shares = []
        for step in range(1, STEPS + 1):
            with torch.no_grad():
                for tensor in masking.tensors:
                    tensor.fill_(1.0)
            method.on_step(step, optimizer_of(graph))
            shares.append(sum(int(torch.count_nonzero(t)) for t in masking.tensors) / total)
        high, low = expected
        for step, share in enumerate(shares, 1):
            wanted = high + (low - high) * min(1.0, step / (STEPS / 2))
            assert wanted - 1 / total < share <= wanted + 1e-9
        method.on_phase_end(phase)


def test_the_budget_falls_in_the_first_phase_of_weights_alone():
    for start in ("weights", "masks"):
        method, run, graph = started(start=start)
        ended, target, first = [], run.limits[0].maximum, []
        while phase := method.next_phase(tuple(ended)):
            method.on_phase_start(phase)
            if phase.name == "weights":
                first.append(method.limits_at(0)[0].maximum)
            for step in range(1, STEPS + 1):
                method.on_step(step, optimizer_of(graph))
            method.on_phase_end(phase)
            ended.append(PhaseEnd(phase.name))
        assert first[0] > target
        assert set(first[1:]) == {target}


def test_masks_are_clamped_after_every_step_and_weights_are_not():
    method, _, graph = started(start="masks", interval=100)
    method.on_phase_start(method._mask_phase())
    with torch.no_grad():
        method._masking.tensors[0].fill_(1.5)
        graph.module[0].weight.fill_(1.5)
    method.on_step(1, optimizer_of(graph))
    assert (method._masking.tensors[0] == 1).all()
    assert (graph.module[0].weight == 1.5).all()


@pytest.mark.slow
def test_a_resumed_method_continues_alike_in_every_phase():
    for number in range(4):
        method, run, graph = started(start="masks", interval=3)
        ended = []
        for _ in range(number):
            phase = method.next_phase(tuple(ended))
            run_phase(method, graph, phase, seed=50 * len(ended))
            ended.append(PhaseEnd(phase.name))
        phase = method.next_phase(tuple(ended))
        method.on_phase_start(phase)
        disturb(phase.tensors or [graph.weight(s) for s in graph.sites], 3)
        method.on_step(6, optimizer_of(graph))
        resumed, _, other = started(start="masks", interval=3)
        other.runnable.load_state_dict(graph.runnable.state_dict())
        resumed.load_state_dict(method.state_dict())
        for current, worker in ((graph, method), (other, resumed)):
            same = worker.next_phase(tuple(ended))
            disturb(same.tensors or [current.weight(s) for s in current.sites], 4)
            worker.on_step(9, optimizer_of(current))
            worker.on_epoch(0, optimizer_of(current))
            worker.on_phase_end(same)
            following = worker.next_phase((*ended, PhaseEnd(same.name)))
            if following:
                run_phase(worker, current, following, seed=9)
            worker.finalize(current, run)
        states = [g.runnable.state_dict() for g in (graph, other)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert values_of(graph) == values_of(other)


def test_a_rule_for_a_layer_survives_its_masks():
    graph = conv_graph()
    graph.rules = {"2": LayerRule(0.9)}
    method, run, graph = started(graph=graph, start="masks", budget="energy<=90%")
    run_phase(method, graph, method.next_phase(()))
    with torch.no_grad():
        method._masking.tensors[1][:3] = 0.0
    method.finalize(graph, run)
    assert int((graph.module[2].weight != 0).sum()) >= 0.9 * 144


def test_without_training_masks_are_refused():
    graph = conv_graph()
    method = SPEC.build(EnergyProjection(input_mask=True))
    with pytest.raises(ArgumentError, match="nothing to train on") as caught:
        method.plan(graph, costs_of(graph), limits_of(graph, "energy<=70%"))
    assert "labelled data" in caught.value.remedy


def floor(graph):
    costs = costs_of(graph)
    return sum(site.activation_energy(costs.hardware) for site in graph.compressible)


def test_below_what_activations_cost_only_masks_help():
    below = floor(conv_graph())
    for options in (
        {"input_mask": False},
        {"start": "weights"},
        {"start": "masks", "mask_keep": (1.0,)},
    ):
        with pytest.raises(InfeasibleBudget) as caught:
            started(budget=f"energy<={below}", **options)
        assert caught.value.tightest > below
        assert "method 'energy' with input_mask=True, start='masks'" in caught.value.remedy
    method, run, graph = started(budget=f"energy<={below}", start="masks")
    ended = []
    while phase := method.next_phase(tuple(ended)):
        run_phase(method, graph, phase, seed=31 * len(ended))
        ended.append(PhaseEnd(phase.name))
    method.finalize(graph, run)
    again = traced(graph.runnable, torch.zeros(1, 2, 8, 8))
    assert values_of(again)["energy"] <= below


def test_the_least_that_masks_can_reach_is_what_the_error_says():
    for mask_cost in ("energy", "count"):
        options = {"start": "masks", "mask_keep": (0.5,), "mask_cost": mask_cost}
        with pytest.raises(InfeasibleBudget) as caught:
            started(budget="energy<=2", **options)
        tightest = caught.value.tightest
        with pytest.raises(InfeasibleBudget):
            started(budget=f"energy<={tightest - 1}", **options)
        method, run, graph = started(budget=f"energy<={tightest}", **options)
        for phase in (method.next_phase(()), method.next_phase((PhaseEnd("masks"),))):
            run_phase(method, graph, phase)
        method.finalize(graph, run)
        assert values_of(graph)["energy"] <= tightest


def test_nothing_to_mask_is_known_when_the_method_is_prepared():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    for start in ("weights", "masks"):
        with pytest.raises(PreconditionError, match="no convolution"):
            started(graph=traced(model, torch.zeros(1, 4)), start=start)


BAD = [
    {"input_mask": 1},
    {"input_mask": None},
    {"stop_early": "yes"},
    {"mask_lr": -0.1},
    {"mask_lr": math.nan},
    {"mask_lr": True},
    {"mask_lr": "1e-4"},
    {"mask_weight_decay": -1},
    {"mask_weight_decay": math.inf},
    {"mask_keep": ()},
    {"mask_keep": 0.9},
    {"mask_keep": "0.9"},
    {"mask_keep": (0.8, 0.9)},
    {"mask_keep": (1.1, 0.9)},
    {"mask_keep": (0.9, -0.1)},
    {"mask_keep": (0.9, math.nan)},
    {"mask_keep": (True,)},
    {"mask_keep": ("0.9",)},
    {"mask_cost": "bytes"},
    {"mask_cost": None},
    {"mask_score": "magnitude"},
    {"mask_score": None},
    {"start": "both"},
    {"start": None},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_values_are_typed_errors(options):
    with pytest.raises(ArgumentError) as caught:
        EnergyProjection(**options)
    assert next(iter(options)) in str(caught.value)


def test_a_list_of_shares_is_a_tuple_and_comes_back():
    config = EnergyProjection(mask_keep=[1, 0.5, 0.5, 0])
    assert config.mask_keep == (1, 0.5, 0.5, 0)
    assert hash(config) == hash(EnergyProjection(mask_keep=(1, 0.5, 0.5, 0)))
    assert EnergyProjection.from_dict(config.to_dict()) == config
