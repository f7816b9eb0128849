"""The joint method under a limit on energy, alone and behind others, in one shot and trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from joint_energy_nets import EYERISS, IMAGE, batches, graph_of, limit_of, net

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget, UnsupportedBudget
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.methods.base import Run
from passes.methods.chain import ChainMethod, chain_spec
from passes.methods.energy_projection import EnergyProjection, WeightedProjection
from passes.methods.joint import SPEC, Joint
from passes.methods.joint.energy_training import EnergyAlternation
from passes.methods.phases import Phase

# More than a second each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

FOUR = Joint(bits=4, levels="uniform", mode="quantize")


def compressed(budget: str, method: Any = "joint", **options: Any) -> transform.Compressed:
    options = {"example_inputs": IMAGE, "progress": "none", "keep_shapes": True} | options
    return transform.compress(net(), budget, method=method, **options)


def trained(budget: str, method: Any = "joint", epochs: int = 4) -> transform.Compressed:
    data = batches()
    train = transform.TrainConfig(epochs=epochs)
    options = {"method": method, "train": train, "progress": "none", "keep_shapes": True}
    return transform.compress(net(), budget, data, valid=data, **options)


def bits_of(result: transform.Compressed) -> list[int]:
    return [row.bits for row in result.costs.after]


def zeros_of(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {site.name: graph.weight(site) == 0 for site in graph.compressible}


def check_grids(result: transform.Compressed) -> None:
    """Every weight is on its grid, and is charged at its width."""
    assert not result.graph.codebooks
    for site, row in zip(result.graph.sites, result.costs.after, strict=True):
        encoding = result.graph.encodings[site.name]
        encoding.check(result.graph.weight(site), site.name)
        assert row.charged == row.bits == encoding.bits


@pytest.mark.parametrize("share", [50, 55])
def test_one_shot_chooses_zeros_and_bits_within_the_energy(share: int) -> None:
    result = compressed(f"energy<={share}%")
    [row] = result.certificate.rows
    assert row.holds
    # What is told is what is reached: no weight that is kept rounds to zero.
    assert 0.99 * row.maximum < row.reached == result.plan.reached["energy"] <= row.maximum
    check_grids(result)
    assert len(set(bits_of(result))) > 1
    assert any(d.what == "uniform levels" for d in result.decisions)
    assert result.costs.after.total.nonzeros < result.costs.before.total.nonzeros


def test_the_user_asks_for_uniform_levels_and_nothing_is_decided() -> None:
    result = compressed("energy<=55%", Joint(levels="uniform", max_bits=5))
    assert not any(d.what == "uniform levels" for d in result.decisions)
    assert max(bits_of(result)) <= 5


def test_given_bits_stay() -> None:
    result = compressed("energy<=52%", Joint(bits={"0": 6, "3": 3}))
    assert bits_of(result)[:2] == [6, 3]
    assert result.certificate.holds


def test_pruning_alone_is_the_energy_method() -> None:
    one = compressed("energy<=52%", Joint(mode="prune"))
    other = compressed("energy<=52%", EnergyProjection(min_per_layer=0, min_density=0))
    assert not one.graph.encodings
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_quantizing_alone_removes_nothing_itself() -> None:
    result = compressed("energy<=56%", Joint(mode="quantize"))
    check_grids(result)
    for site in result.graph.sites:
        weight = graph_of(net(), IMAGE).weight(site)
        rounded = result.graph.weight(site) == 0
        limit = float(result.graph.encodings[site.name].scale.max()) / 2
        assert bool((weight[rounded].abs() <= limit).all())
    with pytest.raises(InfeasibleBudget):
        compressed("energy<=50%", Joint(mode="quantize"))


def test_two_limits_hold_at_once() -> None:
    result = compressed("energy<=55%, weight_bits<=6%")
    assert [row.holds for row in result.certificate.rows] == [True, True]
    nominal = sum(int(row.nonzeros * row.bits) for row in result.costs.after)
    assert nominal == result.certificate.rows[1].reached


def test_layers_under_rules_stay_as_they_are_or_keep_their_share() -> None:
    result = compressed("energy<=95%", layers={"3": False, "7": {"max_sparsity": 0.2}})
    before = graph_of(net(), IMAGE)
    graph = result.graph
    assert torch.equal(graph.weight(graph.by_name["3"]), before.weight(before.by_name["3"]))
    assert "3" not in graph.encodings
    assert int((graph.weight(graph.by_name["7"]) != 0).sum()) >= 0.8 * 160
    assert result.certificate.holds


def test_what_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        compressed("energy<=20%")
    assert (caught.value.limit, caught.value.binding_layer) == ("energy", "3")
    assert compressed(f"energy<={caught.value.tightest / 4442976 * 1.001:.6f}").certificate.holds
    with pytest.raises(UnsupportedBudget, match="archive"):
        compressed("energy<=60%, archive<=50%")


@pytest.mark.parametrize("mode", ["both", "quantize"])
def test_training_ends_within_the_energy(mode: str) -> None:
    result = trained("energy<=56%", Joint(mode=mode))
    [row] = result.certificate.rows
    assert row.holds
    check_grids(result)
    told = [r["allowed_energy"] for r in result.history if "allowed_energy" in r]
    assert told == sorted(told, reverse=True)
    assert len(told) == 4
    fixed = row.maximum - told[-1]
    floors = sum(site.activation_energy(EYERISS) for site in result.graph.sites)
    assert fixed == pytest.approx(floors, abs=1 / 128)


def test_training_keeps_both_limits() -> None:
    result = trained("energy<=54%, weight_bits<=6%")
    assert [row.holds for row in result.certificate.rows] == [True, True]
    assert set(result.graph.encodings) == {"0", "3", "7"}


def prepared() -> tuple[ModelGraph, Any]:
    """A graph that is being trained under a limit on energy."""
    graph = graph_of(net(), IMAGE)
    limits = (limit_of(graph, "energy<=55%"),)
    costs = cost_table(graph, EYERISS)
    run = Run(one_shot=False, limits=limits, costs=costs, total_steps=40, epoch_steps=8)
    method = SPEC.build(Joint(project_every=2))
    method.observe(graph, run)
    method.prepare(graph, method.plan(graph, costs, limits, one_shot=False), run)
    method.on_phase_start(Phase())
    return graph, method


def train(graph: ModelGraph, method: Any, steps: range) -> None:
    parameters = list(graph.module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    graph.module.eval()
    for step in steps:
        optimizer.zero_grad()
        graph.module(batches(1)[0][0]).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            method.on_step(step, optimizer)
            if step % 8 == 0:
                method.on_epoch(step // 8, optimizer)


def test_a_resumed_run_charges_the_same_widths_and_goes_on_alike() -> None:
    graph, method = prepared()
    train(graph, method, range(1, 17))
    again, resumed = prepared()
    again.module.load_state_dict(graph.module.state_dict())
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert isinstance(resumed._training, EnergyAlternation)
    assert [s.widths for s in again.sites] == [s.widths for s in graph.sites]
    assert any(s.widths != Widths() for s in again.sites)
    for g, m in ((graph, method), (again, resumed)):
        train(g, m, range(17, 25))
    assert method.report() == resumed.report()
    for a, b in zip(graph.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_announced_widths_let_the_method_before_charge_what_remains() -> None:
    result = compressed("energy<=55%", ["energy", FOUR])
    alone = compressed("energy<=55%", "energy")
    [row] = result.certificate.rows
    assert 0.99 * row.maximum < row.reached <= result.plan.reached["energy"] <= row.maximum
    check_grids(result)
    assert bits_of(result) == [4, 4, 4]
    assert result.costs.after.total.nonzeros > 2 * alone.costs.after.total.nonzeros
    with pytest.raises(InfeasibleBudget):  # bits alone do not reach it
        compressed("energy<=55%", FOUR)


def test_widths_are_announced_where_they_are_uniform() -> None:
    graph = graph_of(net(), IMAGE)
    announced = SPEC.build(Joint(bits={"3": 3}, levels="uniform", max_bits=6)).announced_widths
    assert announced(graph) == {"0": Widths(6), "3": Widths(3), "7": Widths(6)}
    for config in (Joint(), Joint(mode="prune", levels="uniform"), Joint(bits=4)):
        assert SPEC.build(config).announced_widths(graph) == {}


def test_every_limit_goes_to_the_method_that_chooses_it() -> None:
    graph = graph_of(net(), IMAGE)
    energy = limit_of(graph, "energy<=50%")
    nominal = type(energy)(type(energy.limit)("weight_bits", energy.limit.value, "share"), 9, 9)
    for second, owner in ((Joint(), 1), (Joint(bits=4), 1), (FOUR, 0), (Joint(mode="quantize"), 1)):
        spec, config = chain_spec(["energy", second])
        chain = spec.build(config)
        assert isinstance(chain, ChainMethod)
        shares = chain._shares([energy, nominal])
        assert shares[0][0] is energy
        assert shares[owner][-1] is nominal
        assert chain.claims("weight_bits") == bool(owner)
        assert not chain.claims("energy")


def test_zeros_of_the_method_before_stay_in_one_shot() -> None:
    both = compressed("energy<=55%, weight_bits<=2%", ["energy", "joint"])
    assert [row.holds for row in both.certificate.rows] == [True, True]
    first, last = zeros_of(compressed("energy<=55%", "energy").graph), zeros_of(both.graph)
    assert all(bool((last[name] | ~zero).all()) for name, zero in first.items())
    assert set(both.graph.codebooks) == {"0", "3", "7"}


@pytest.mark.parametrize(
    ("budget", "second"),
    [
        ("energy<=56%, weight_bits<=1.5%", Joint()),
        ("energy<=56%", FOUR),
        ("energy<=56%", Joint(mode="quantize", bits=3)),
    ],
)
def test_zeros_of_the_method_before_stay_in_training(
    budget: str, second: Joint, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, torch.Tensor] = {}
    finalize = WeightedProjection.finalize

    def noted(method: WeightedProjection, graph: ModelGraph, run: Run) -> None:
        finalize(method, graph, run)
        first.update(zeros_of(graph))

    monkeypatch.setattr(WeightedProjection, "finalize", noted)
    result = trained(budget, ["energy", second])
    assert result.certificate.holds
    last = zeros_of(result.graph)
    assert sum(int(zero.sum()) for zero in first.values()) > 500
    assert all(bool((last[name] | ~zero).all()) for name, zero in first.items())


def test_zeros_that_come_after_the_codebook_stay_zero() -> None:
    graph = graph_of(net(), IMAGE)
    costs = cost_table(graph, EYERISS)
    run = Run(one_shot=False, costs=costs, total_steps=10, epoch_steps=5)
    method = SPEC.build(Joint(mode="quantize", bits=2))
    method.prepare(graph, method.plan(graph, costs, (), one_shot=False), run)
    method.on_phase_start(Phase())
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.0)
    with torch.no_grad():
        method.on_step(10, optimizer)
        book = graph.codebooks["3"]
        assert not book.reserved_zero
        assert not bool((book.levels == 0).any())
        graph.weight(graph.by_name["3"])[:8] = 0  # another method of the list
        method.finalize(graph, run)
    assert bool((graph.weight(graph.by_name["3"])[:8] == 0).all())
    assert graph.codebooks["3"].bits == 2


def test_without_limits_of_its_own_a_stage_takes_the_widest_codes() -> None:
    result = compressed("energy<=55%", ["energy", Joint(max_bits=6)])
    assert bits_of(result) == [6, 6, 6]
    assert result.certificate.holds


def test_energy_after_joint_would_break_the_grid() -> None:
    with pytest.raises(ArgumentError, match="would not keep its grid"):
        chain_spec(["joint", "energy"])
