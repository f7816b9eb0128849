"""Patterns in the methods: budgets hold in whole units, in one shot and in training."""

from __future__ import annotations

import itertools

import pytest
import torch
from lenet_problem import (
    costs_of,
    kept_squares,
    lenet_graph,
    limits_of,
    traced,
    values_of,
    with_formula_weights,
)
from torch import nn

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.graph import LayerRule
from passes.methods.base import Run
from passes.methods.energy_projection import SPEC as ENERGY
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.magnitude import Magnitude
from passes.methods.pattern_fit import layout_of, unit_charges
from passes.methods.phases import Phase
from passes.methods.problem import build_problem
from passes.projection.ladder import build_ladder
from passes.projection.pattern_units import GroupedColumns, Runs, SingleWeights, Tiles
from passes.projection.patterns import parse_pattern

METHODS = {
    "energy": (ENERGY, EnergyProjection, {}),
    "magnitude global": (MAGNITUDE, Magnitude, {}),
    "magnitude per layer": (MAGNITUDE, Magnitude, {"scope": "layer"}),
}
PATTERNS = ["column_groups", "column_groups:5", "2:4", "1:4", (2, 1), (1, 4), (5, 4)]


def mlp_graph(*widths, generator=0):
    widths = widths or (24, 20, 10)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers).double()
    random = torch.Generator().manual_seed(generator)
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(generator=random)
    return traced(model, torch.zeros(2, widths[0], dtype=torch.float64))


def compressed(graph, name, budget, **fields):
    spec, config, own = METHODS[name]
    method, limits = spec.build(config(**own, **fields)), limits_of(graph, budget)
    run = Run(limits=limits, costs=costs_of(graph))
    plan = method.plan(graph, run.costs, limits)
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    return plan


def assert_in_pattern(graph, pattern):
    """Every layer is dense or in its pattern."""
    parsed = parse_pattern(pattern)
    for site in graph.compressible:
        layout, kept = layout_of(parsed, graph, site), graph.weight(site) != 0
        if isinstance(layout, SingleWeights) or kept.all():
            assert kept.all()
        elif isinstance(layout, Runs):
            assert (kept.reshape(-1, layout.m).sum(1) == layout.n).all()
        else:
            width = layout.width if isinstance(layout, Tiles) else 1
            tiles = kept.reshape(
                layout.rows // layout.height, layout.height, layout.cols // width, width
            )
            assert torch.equal(tiles.any(3).any(1), tiles.all(3).all(1))
            if isinstance(layout, GroupedColumns):
                assert len(set(tiles.all(1).sum((1, 2)).tolist())) == 1


@pytest.mark.spread(6)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("budget", ["nonzeros<=60%", "energy<=85%, weight_bits<=80%"])
def test_one_shot_meets_the_budget_in_the_pattern(name, pattern, budget):
    graph = mlp_graph()
    plan = compressed(graph, name, budget, pattern=pattern)
    values = values_of(graph)
    assert values["nonzeros"] < sum(site.size for site in graph.compressible)
    assert plan.reached == {key: values[key] for key in plan.reached}
    assert all(plan.reached[key] <= plan.allowed[key] for key in plan.reached)
    counts = {s.name: int(torch.count_nonzero(graph.weight(s))) for s in graph.compressible}
    assert plan.kept == counts
    assert_in_pattern(graph, pattern)


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", ["column_groups", "2:4", (1, 4)])
def test_training_projects_into_the_pattern_and_lets_weights_regrow(name, pattern):
    spec, config, own = METHODS[name]
    graph = mlp_graph()
    method, limits = spec.build(config(**own, pattern=pattern)), limits_of(graph, "nonzeros<=55%")
    run = Run(one_shot=False, limits=limits, costs=costs_of(graph), total_steps=40)
    method.prepare(graph, method.plan(graph, run.costs, limits, one_shot=False), run)
    assert values_of(graph)["nonzeros"] == 680
    method.on_phase_start(Phase())
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.1)
    generator, masks = torch.Generator().manual_seed(1), []
    for step in range(10, 41, 10):
        with torch.no_grad():
            for site in graph.compressible:
                graph.parameter(site).normal_(generator=generator)
        method.on_step(step, optimizer)
        assert values_of(graph)["nonzeros"] <= method.limits_at(step)[0].maximum
        assert_in_pattern(graph, pattern)
        masks.append(graph.weight(graph.compressible[0]) != 0)
    assert (masks[-1] & ~masks[-2]).any()
    method.finalize(graph, run)
    assert values_of(graph)["nonzeros"] <= limits[0].maximum
    assert_in_pattern(graph, pattern)


@pytest.mark.parametrize("pattern", [None, (1, 1)])
def test_blocks_of_one_weight_are_single_weights(pattern):
    alone, blocks = lenet_graph(), lenet_graph()
    compressed(alone, "energy", "energy<=40%")
    compressed(blocks, "energy", "energy<=40%", pattern=pattern)
    for site in alone.compressible:
        assert torch.equal(alone.weight(site), blocks.weight(blocks.by_name[site.name]))


@pytest.mark.spread(4)
@pytest.mark.parametrize("pattern", [(2, 1), "column_groups:2", (2, 2)])
@pytest.mark.parametrize("share", [40, 45, 60, 80])
def test_energy_projection_is_within_its_gap_of_every_choice_of_units(pattern, share):
    graph = mlp_graph(4, 4, 2)
    sites, parsed = graph.compressible, parse_pattern(pattern)
    layouts = [layout_of(parsed, graph, site) for site in sites]
    limits, costs = limits_of(graph, f"nonzeros<={share}%"), costs_of(graph)
    weights = [graph.weight(site).clone() for site in sites]
    best = 0.0
    for counts in itertools.product(*(range(1, layout.units + 1) for layout in layouts)):
        masks = [x.mask(w, n) for x, w, n in zip(layouts, weights, counts, strict=True)]
        if sum(int(mask.sum()) for mask in masks) <= limits[0].maximum:
            kept = sum(float((w[m] ** 2).sum()) for w, m in zip(weights, masks, strict=True))
            best = max(best, kept)
    method = ENERGY.build(EnergyProjection(pattern=pattern))
    plan = method.plan(graph, costs, limits)
    compressed(graph, "energy", f"nonzeros<={share}%", pattern=pattern)
    assert best - plan.gap - 1e-9 <= kept_squares(graph) <= best + 1e-9


def test_runs_go_where_least_is_lost_per_saving():
    graph = mlp_graph(8, 8, 8, 8)
    with torch.no_grad():
        for site, scale in zip(graph.compressible, (5.0, 1.0, 3.0), strict=True):
            graph.parameter(site).mul_(scale)
    for name in ("energy", "magnitude global"):
        plan = MAGNITUDE.build(Magnitude(pattern="2:4"))
        if name == "energy":
            plan = ENERGY.build(EnergyProjection(pattern="2:4"))
        limits = limits_of(graph, "nonzeros<=70%")
        kept = plan.plan(graph, costs_of(graph), limits).kept
        assert list(kept.values()) == [64, 32, 32]


@pytest.mark.parametrize(("pattern", "tightest"), [("2:4", 340), ("1:4", 240 // 2 + 50 * 1)])
def test_runs_below_what_they_can_reach(pattern, tightest):
    graph = mlp_graph()
    with pytest.raises(InfeasibleBudget, match="another pattern") as caught:
        compressed(graph, "energy", "nonzeros<=10%", pattern=pattern)
    assert caught.value.tightest == tightest
    plan = compressed(graph, "energy", f"nonzeros<={tightest}", pattern=pattern)
    assert sum(plan.kept.values()) == tightest
    with pytest.raises(InfeasibleBudget):
        compressed(mlp_graph(), "energy", f"nonzeros<={tightest - 1}", pattern=pattern)


def test_minimums_are_rounded_to_whole_units():
    graph = mlp_graph()
    plan = compressed(graph, "magnitude global", "nonzeros<=40%", pattern=(4, 1), min_per_layer=0)
    assert not any(keep % 4 for layer, keep in plan.kept.items() if layer == "0")
    built = problem(mlp_graph(), "nonzeros<=99%", "column_groups:5", min_density=0.3)
    assert built.minimums == (8, 6)  # 7.2 of 24 and 6 of 20 columns


def problem(graph, budget, pattern, min_density):
    return build_problem(
        graph,
        costs_of(graph),
        limits_of(graph, budget),
        min_per_layer=1,
        min_density=min_density,
        pattern=parse_pattern(pattern),
    )


def test_minimums_count_weights_that_are_not_zero_already():
    graph = mlp_graph()
    with torch.no_grad():
        graph.parameter(graph.by_name["0"])[::2] = 0  # half of every unit
    assert problem(graph, "nonzeros<=99%", "column_groups", min_density=0.25).minimums[0] == 12
    assert problem(graph, "nonzeros<=99%", "column_groups", min_density=0.9).minimums[0] == 24
    graph.rules["0"] = LayerRule(min_density=0.25)
    compressed(graph, "energy", "nonzeros<=50%", pattern="column_groups")
    assert int(torch.count_nonzero(graph.weight(graph.by_name["0"]))) >= 120


def test_layers_that_are_left_alone_stay_whole():
    graph = mlp_graph()
    graph.rules["1"] = LayerRule(min_density=1)
    plan = compressed(graph, "energy", "nonzeros<=70%", pattern="1:4")
    assert plan.kept["1"] == 200


@pytest.mark.parametrize(
    ("capacity", "size"), [(0, 24), (5, 24), (8, 24), (9, 24), (24, 24), (100, 24)]
)
@pytest.mark.parametrize(
    "layout", [Tiles(4, 6, 2, 2), GroupedColumns(4, 6, 2), Runs(4, 6, 1, 3), Runs(4, 6, 2, 3)]
)
def test_units_are_charged_what_their_weights_are(capacity, size, layout):
    single = build_ladder(size, [(capacity, (3, 1)), (size, (7, 1))])
    units = build_ladder(layout.units, unit_charges(layout, single))
    for count in range(layout.units + 1):
        assert units.used(count) == single.used(layout.weights_of(count))


def test_energies_beyond_the_weight_cache_are_exact():
    graph = mlp_graph(512, 640, 10)  # one layer larger than the cache
    plan = compressed(graph, "energy", "energy<=70%", pattern="column_groups")
    assert 0 < plan.kept["0"] < 512 * 640
    assert plan.reached["energy"] == values_of(graph)["energy"] <= plan.allowed["energy"]


class Shapes(nn.Module):
    """One layer of every kind."""

    def __init__(self):
        super().__init__()
        self.plain, self.point = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.grouped, self.strided = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, stride=2)
        self.padded, self.up = nn.Conv2d(8, 8, 1, padding=1), nn.ConvTranspose2d(8, 8, 2)
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)
        self.raw = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        x = self.up(self.padded(self.strided(self.grouped(self.point(self.plain(x))))))
        x = self.lstm(x.flatten(2).transpose(1, 2) @ self.raw)[0]
        return self.head(x)


def test_what_fits_which_layer_and_why_not():
    graph = traced(Shapes(), torch.zeros(2, 4, 8, 8))

    def dense(pattern):
        layouts = {s.name: layout_of(parse_pattern(pattern), graph, s) for s in graph.compressible}
        return {n: x.dense for n, x in layouts.items() if isinstance(x, SingleWeights)}

    groups = dense("column_groups")
    assert {"point", "head"} == {s.name for s in graph.compressible} - set(groups)
    assert "linear layer or a 1 x 1 convolution without groups" in groups["plain"]
    assert groups["grouped"] == groups["plain"]
    assert "stride 1 without padding" in groups["strided"]
    assert groups["padded"] == groups["strided"]
    assert "recurrent" in next(why for name, why in groups.items() if name.startswith("lstm"))
    assert set(dense((2, 2))) == set(dense("2:4")) == {"up", "raw"}
    assert "ConvTranspose2d is not known" in dense((2, 2))["up"]
    assert "Shapes is not known" in dense((2, 2))["raw"]


def test_decisions_tell_which_layers_got_the_pattern():
    graph = lenet_graph()
    compressed(graph, "energy", "nonzeros<=90%", pattern="column_groups")
    told = {d.layer: d for d in graph.decisions}
    assert told["0"].what == "left dense by pattern column_groups"
    assert "1 x 1" in told["0"].why
    assert (told["7"].what, told["9"].what) == ("pattern column_groups",) * 2
    assert told["7"].why == "1 groups of 120 rows choose among 400 columns"
    rows = {row.layer: row.why for row in compressed(lenet_graph(), "energy", "nonzeros<=90%",
        pattern="column_groups").rows}  # fmt: skip
    assert rows["0"] == "left dense by the pattern"


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(PreconditionError, match="the pattern fits no layer") as caught:
        compressed(mlp_graph(), "energy", "nonzeros<=50%", pattern=(7, 7))
    assert "0: blocks of 7 x 7 do not divide 20 x 24" in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pattern", ["column_groups", "2:4", (2, 2)])
def test_weights_that_are_not_finite_are_counted(bad, pattern):
    graph = mlp_graph()
    with torch.no_grad():
        graph.parameter(graph.by_name["1"])[3, 4:6] = bad
    with pytest.raises(PreconditionError, match="1: 2 of 200 weights are NaN"):
        compressed(graph, "energy", "nonzeros<=50%", pattern=pattern)


@pytest.mark.parametrize("config", [EnergyProjection, Magnitude])
@pytest.mark.parametrize("pattern", [None, "column_groups", "column_groups:64", "2:4", (4, 1)])
def test_patterns_survive_a_dict(config, pattern):
    built = config(pattern=pattern)
    data = built.to_dict()
    assert data["pattern"] == (list(pattern) if isinstance(pattern, tuple) else pattern)
    assert config.from_dict(data) == built
    assert hash(config.from_dict(data)) == hash(built)


@pytest.mark.parametrize("config", [EnergyProjection, Magnitude])
@pytest.mark.parametrize("pattern", ["4:2", "rows", (4,), (0, 1), 3, True, (1.5, 2), {}])
def test_bad_patterns_are_refused_with_what_is_possible(config, pattern):
    with pytest.raises(ArgumentError, match="'2:4'") as caught:
        config(pattern=pattern)
    assert caught.value.where == f"{config.__name__}.pattern"
    assert "'column_groups'" in caught.value.remedy


def test_patterns_and_input_masks_exclude_each_other():
    with pytest.raises(ArgumentError, match="input masks, which remove channels"):
        EnergyProjection(pattern="2:4", input_mask=True)


def test_large_units_do_not_win_by_their_size():
    model = with_formula_weights(nn.Sequential(nn.Linear(32, 128), nn.Linear(128, 8)).double())
    graph = traced(model, torch.zeros(2, 32, dtype=torch.float64))
    with torch.no_grad():
        for site in graph.compressible:
            graph.parameter(site).copy_(torch.sign(graph.parameter(site)))
        graph.parameter(graph.by_name["1"]).mul_(1.5)  # 8 rows: norms far below those of 128 rows
    plan = compressed(graph, "magnitude global", "nonzeros<=50%", pattern="column_groups")
    assert plan.kept["1"] == 8 * 128
