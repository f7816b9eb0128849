"""The method `quantize` in one shot: plans, budgets, plain results on their grids."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from quantize_problem import (
    EYERISS,
    FLOAT_FILE,
    batches,
    costs_of,
    graph_of,
    inputs,
    limits_of,
    method_of,
    net,
    plan_of,
    quantized,
    traced,
)
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.graph import LayerRule
from passes.methods.base import Run
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.plan import Plan
from passes.methods.quantize import SPEC
from passes.methods.quantize_config import Quantize
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.fit import fit_encoding
from passes.quantize.placement import CONTAINER
from passes.quantize.widths import observed_widths

SITES = ["conv", "first", "head"]
WEIGHTS = {"activations": None}


def state_of(graph):
    return {k: v.clone() for k, v in graph.runnable.state_dict().items()}


@pytest.mark.spread(4)
@pytest.mark.parametrize("options", [{}, WEIGHTS, {"weights": "auto"}, {"block": 16}])
@pytest.mark.parametrize("budget", ["weight_bits<=25%", "size<=60 kB", "energy<=90%"])
def test_a_plan_is_pure_and_can_be_written(options, budget):
    graph = graph_of(net())
    before, sites = state_of(graph), graph.sites
    first, second = (plan_of(graph, budget, **options) for _ in range(2))
    assert first == second
    assert Plan.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert graph.sites is sites
    assert (graph.decisions, graph.encodings, graph.rewritten) == ([], {}, False)
    assert all(torch.equal(v, before[k]) for k, v in graph.runnable.state_dict().items())
    assert not hasattr(graph.graph_module, CONTAINER)


def test_rows_tell_the_width_of_every_layer():
    graph = graph_of(net())
    graph.rules = {"conv": LayerRule(1.0)}
    with torch.no_grad():
        graph.parameter(graph.by_name["head"])[0] = 0.0
    plan = plan_of(graph, weights=4, block=16)
    rows = {row.layer: (row.size, row.keep, row.why) for row in plan.rows}
    assert rows == {
        "conv": (144, 144, "the layer is left alone"),
        "first": (1024, 1024, "4 bits per block of 16"),
        "head": (128, 96, "4 bits per block of 16"),
    }
    assert plan.details == {"bits": {"first": 4, "head": 4}, "activations": 8}
    assert plan.reached == {"weight_bits": 32 * 144 + 4 * 1120}
    assert plan_of(graph_of(net())).rows[0].why == "8 bits per channel"


@pytest.mark.spread(3)
@pytest.mark.parametrize("share", [26, 25, 24, 16, 15, 12, 7, 6.5])
def test_auto_is_the_largest_width_that_fits(share):
    graph = graph_of(net())
    plan = plan_of(graph, f"weight_bits<={share}%", weights="auto")
    [bits] = set(plan.details["bits"].values())
    assert bits == min(8, math.floor(32 * share / 100))
    assert plan.reached["weight_bits"] == bits * 1296 <= plan.allowed["weight_bits"]


def test_auto_meets_all_limits_together():
    graph = graph_of(net())
    size = plan_of(graph, "size<=100%", weights=4, **WEIGHTS).reached["size"]
    plan = plan_of(graph, f"weight_bits<=20%, size<={int(size)} B", weights="auto", **WEIGHTS)
    assert set(plan.details["bits"].values()) == {4}
    plan = plan_of(graph, "weight_bits<=100%", weights="auto")
    assert set(plan.details["bits"].values()) == {8}


@pytest.mark.spread(3)
@pytest.mark.parametrize("weights", [8, 4, "auto"])
@pytest.mark.parametrize("budget", ["weight_bits<=10 bit", "size<=10 B", "energy<=10 MAC"])
def test_the_tightest_value_of_the_error_is_reached(weights, budget):
    graph = graph_of(net())
    with pytest.raises(InfeasibleBudget) as caught:
        plan_of(graph, budget, weights=weights)
    error, key = caught.value, budget.split("<")[0]
    assert (error.limit, error.binding_layer) == (key, "first")
    assert ("weights='auto'" in error.remedy) == (weights != "auto")
    unit = {"weight_bits": " bit", "size": " B", "energy": " MAC"}[key]
    plan = plan_of(graph, f"{key}<={error.tightest}{unit}", weights=weights)
    assert plan.reached[key] <= error.tightest


def test_energy_is_that_of_the_table_at_the_final_widths():
    graph = graph_of(net())
    planned = plan_of(graph, "energy<=100%", weights=4)
    before = cost_table(graph, EYERISS).total.energy.relaxed
    quantized(graph, weights=4)
    after = cost_table(graph, EYERISS).total.energy.relaxed
    assert after <= planned.reached["energy"] < before
    nonzeros = sum(int(torch.count_nonzero(graph.weight(s))) for s in graph.sites)
    assert nonzeros < sum(s.size for s in graph.sites)
    wide = plan_of(graph_of(net()), "energy<=100%", weights=4, activations=None)
    assert planned.reached["energy"] < wide.reached["energy"]


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", [{}, WEIGHTS, {"activations": 6}, {"outputs": True}])
def test_announced_widths_are_those_that_are_found_at_the_end(options):
    graph = graph_of(net())
    announced = method_of(weights=4, **options).announced_widths(graph)
    quantized(graph, weights=4, **options)
    assert announced == observed_widths(graph)
    width = options.get("activations", 8)
    last = width if options.get("outputs") else None
    assert announced["conv"] == Widths(4, width, width)
    assert announced["head"] == Widths(4, width, last)
    assert {s.name: s.widths for s in graph.sites} == announced


def test_auto_announces_the_widest():
    graph = graph_of(net())
    announced = method_of(weights="auto", activations=None).announced_widths(graph)
    assert set(announced.values()) == {Widths(8)}


@pytest.mark.spread(3)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [None, 16])
def test_weights_alone_leave_a_plain_model_on_its_grids(bits, block):
    model = net()
    graph = graph_of(model)
    keys, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
    before = {s.name: graph.weight(s).clone() for s in graph.sites}
    quantized(graph, weights=bits, block=block, **WEIGHTS)
    assert graph.runnable is model
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters
    assert model.first.weight is model.second.weight
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert list(graph.encodings) == SITES
    for site in graph.sites:
        encoding, own = graph.encodings[site.name], block if site.name != "conv" else None
        assert (encoding.bits, encoding.block, encoding.axis) == (bits, own, 0)
        encoding.check(graph.weight(site), site.name)
        fitted = fit_encoding(before[site.name], bits, block=own)
        assert torch.equal(graph.weight(site), fitted.nearest(before[site.name]))
    told = [d.layer for d in graph.decisions if d.what == "a scale for each channel"]
    assert told == (["conv"] if block else [])


def test_static_quantization_is_near_the_float_model():
    model = net()
    expected = model(inputs(50)).detach()
    graph = graph_of(model)
    quantized(graph)
    assert graph.rewritten
    off = (
        graph.runnable(inputs(50)).detach() - expected
    ).square().mean() / expected.square().mean()
    assert 0 < float(off) < 1e-3
    parts = [m for m in graph.graph_module.modules() if isinstance(m, ActivationQuantizer)]
    assert len(parts) == 5
    assert all(bool(q.ready) and (q.bits, q.signed) == (8, False) for q in parts)
    told = [d.what for d in graph.decisions]
    assert "activations at 8 bits, unsigned" in told
    assert "activations calibrated" in told
    again = traced(graph.runnable, inputs(3))
    assert torch.equal(again.runnable(inputs(5)), graph.runnable(inputs(5)))


def test_zeros_stay_and_later_zeros_are_kept_too():
    graph = graph_of(net())
    limits = limits_of(graph, "nonzeros<=30%")
    sparse = MAGNITUDE.build()
    plan = sparse.plan(graph, costs_of(graph), limits)
    method, run = method_of(weights=4), Run(batches=batches)
    mine = method.plan(graph, costs_of(graph), limits)
    assert mine.reached == {}
    sparse.prepare(graph, plan, run)
    zeros = {s.name: graph.weight(s) == 0 for s in graph.sites}
    method.prepare(graph, mine, run)
    with torch.no_grad():
        graph.weight(graph.by_name["head"])[1] = 0.0
    sparse.finalize(graph, run)
    method.finalize(graph, run)
    assert not bool(graph.weight(graph.by_name["head"])[1].any())
    for site in graph.sites:
        assert not bool(graph.weight(site)[zeros[site.name]].any())
        graph.encodings[site.name].check(graph.weight(site), site.name)


def test_reconstructed_weights_keep_their_scales_and_activations_follow():
    graph = graph_of(net())
    method, run = method_of(weights=4), Run(batches=batches)
    method.prepare(graph, plan_of(graph, weights=4), run)
    raw = graph.weight(graph.by_name["first"]).clone()
    ranges = {n: b.clone() for n, b in graph.graph_module.named_buffers() if CONTAINER in n}
    new = fit_encoding(3 * raw, 4)
    with torch.no_grad():
        graph.parameter(graph.by_name["first"]).copy_(new.nearest(3 * raw))
    graph.encodings["first"] = new
    method.on_reconstructed(graph, run)
    assert torch.equal(graph.module.first.weight, new.nearest(3 * raw))
    now = dict(graph.graph_module.named_buffers())
    assert not torch.equal(now[f"{CONTAINER}.first.scale"], ranges[f"{CONTAINER}.first.scale"])
    assert torch.equal(now[f"{CONTAINER}.relu.scale"], ranges[f"{CONTAINER}.relu.scale"])
    method.finalize(graph, run)
    assert torch.equal(graph.encodings["first"].scale, new.scale)


def test_what_stays_float_says_why():
    graph = graph_of(net())
    graph.rules = {"first": LayerRule(1.0)}
    before = graph.module.first.weight.detach().clone()
    quantized(graph)
    assert list(graph.encodings) == ["conv", "head"]
    assert torch.equal(graph.module.first.weight, before)
    [told] = [d for d in graph.decisions if d.what == "stays float"]
    assert (told.layer, told.why) == ("first", "the layer is left alone")


def test_activations_without_data_are_refused_before_anything_changes():
    graph = graph_of(net())
    method = method_of()
    with pytest.raises(PreconditionError, match="without data") as caught:
        method.prepare(graph, plan_of(graph), Run())
    assert "data=" in caught.value.remedy
    assert "activations=None" in caught.value.remedy
    assert not any(parametrize.is_parametrized(m) for m in graph.module.modules())
    assert graph.decisions == []
    with pytest.raises(PreconditionError, match="no batch"):
        method_of().prepare(graph, plan_of(graph), Run(batches=lambda count: iter(())))


def test_only_so_many_batches_are_asked_for():
    graph, asked = graph_of(net()), []

    def counted(count):
        asked.append(count)
        return batches(count)

    method_of(batches=3).prepare(graph, plan_of(graph), Run(batches=counted))
    assert asked == [3]


def test_weights_that_are_not_finite_are_refused_with_the_layer():
    model = net()
    with torch.no_grad():
        model.head.weight[1, 2] = float("nan")
    graph = graph_of(model)
    plan = plan_of(graph, weights=4)
    with pytest.raises(PreconditionError, match="head: 1 of 128 weights are not finite"):
        method_of(weights=4).prepare(graph, plan, Run(batches=batches))
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_a_model_that_cannot_be_traced_has_its_weights_quantized_alone():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) if float(x.sum()) > -1e9 else x

    graph = traced(Opaque().eval(), torch.randn(2, 4))
    with pytest.raises(PreconditionError, match="cannot be traced"):
        plan_of(graph)
    quantized(graph, **WEIGHTS)
    graph.encodings["inner"].check(graph.module.inner.weight, "inner")


def test_nothing_to_quantize_is_refused():
    graph = traced(nn.LSTM(4, 3), torch.randn(5, 2, 4))
    with pytest.raises(PreconditionError, match="no layer can be quantized") as caught:
        plan_of(graph, **WEIGHTS)
    assert "LSTM" in str(caught.value)


def test_a_copy_of_the_model_is_not_disturbed():
    model = net()
    other = copy.deepcopy(model)
    expected = other(inputs(4))
    quantized(graph_of(model))
    assert torch.equal(other(inputs(4)), expected)


def test_a_file_is_predicted_from_that_of_the_float_model():
    graph = graph_of(net())
    eight = plan_of(graph, "size<=60 kB", **WEIGHTS).reached["size"]
    four = plan_of(graph, "size<=60 kB", weights=4, **WEIGHTS).reached["size"]
    static = plan_of(graph, "size<=60 kB").reached["size"]
    assert four == eight - 1296 // 2
    assert FLOAT_FILE - 3 * 1296 < eight < FLOAT_FILE
    assert static > eight


def test_the_spec_says_what_it_gives_and_keeps():
    assert SPEC.serves == {"weight_bits", "size", "energy"}
    assert "grid" in SPEC.gives
    assert "zeros" in SPEC.keeps
    assert not method_of().needs_shapes()
    assert method_of(block=32).needs_shapes()


FIELDS = {
    "weights": ([2, 8, "auto"], [1, 9, "4", 4.0, True, None]),
    "activations": ([None, 2, 8], [1, 9, 8.0, True, "auto"]),
    "signed": ([True, False], [0, None]),
    "observer": (["minmax", "percentile", "mse"], ["max", None]),
    "percentile": ([99, 100, 50.1], [50, 101, True, "99"]),
    "block": ([None, 16, 128], [0, 8, 24, 32.0, True]),
    "batches": ([1, 500], [0, 1.5, True, None]),
    "fit": (["mse", "max"], ["l1", None]),
    "outputs": ([True, False], [1]),
    "refit": ([True, False], [1]),
    "hold": ([0, 0.5, 1], [-0.1, 1.1, True, None]),
}


@pytest.mark.parametrize("name", FIELDS)
def test_configurations_are_checked_and_survive_writing(name):
    good, bad = FIELDS[name]
    for value in good:
        config = Quantize(**{name: value})
        assert Quantize.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for value in bad:
        with pytest.raises(ArgumentError, match=f"Quantize.{name}"):
            Quantize(**{name: value})


def test_the_defaults():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Quantize)}
    config = Quantize()
    assert (config.weights, config.activations, config.signed) == (8, 8, False)
    assert config.ranges.to_dict() | {} == {
        "config": "Observer", "version": 1, "kind": "percentile", "percentile": 99.999
    }  # fmt: skip
