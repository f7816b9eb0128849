"""Pruning from dense on a schedule: counts are those of the law, and the end is the budget."""

from __future__ import annotations

import pytest
import torch
from sparse_training_runs import CONV_TOTAL, IMAGES, LABELS, conv_net, nonzeros, trained, watched
from torch import nn

import transform
from energy_model.errors import InfeasibleBudget
from passes.methods.sparse_training import SparseTraining

SHORT = [(IMAGES[:24], LABELS[:24])] * 2
SIZES = {"0": 72, "2": 576, "5": 64}
LAWS = {
    "cubic": lambda done, final: final * (1 - (1 - done) ** 3),
    "exponential": lambda done, final: 1 - (1 - final) ** done,
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("form", LAWS)
@pytest.mark.parametrize("start", ["uniform", "erk"])
def test_counts_follow_the_law_and_end_at_the_budget(form, start, monkeypatch):
    seen = watched(monkeypatch)
    pruning = {"number": 5, "interval": 2, "start_epoch": 1, "form": form}
    result = trained(
        "nonzeros<=10%", rule="gradual", pruning=pruning, start=start, epochs=11, data=SHORT
    )
    assert seen.steps == [2 * epoch + 1 for epoch in (1, 3, 5, 7, 9)]  # ends of epochs
    assert all(bool(mask.all()) for mask in seen.first[0].values())
    final = {name: int(mask.sum()) for name, mask in seen.last[0].items()}
    assert sum(final.values()) == CONV_TOTAL // 10
    for j, moment in enumerate(seen.events, 1):
        for name, mask in moment.after.items():
            sparsity = LAWS[form](j / 5, 1 - final[name] / SIZES[name])
            assert int(mask.sum()) == round((1 - sparsity) * SIZES[name])
            assert not bool((mask & ~moment.before[name]).any())  # what is pruned stays so
            values = moment.values[name].reshape(-1).abs()
            gone = moment.dropped[name]
            assert not bool(gone.any()) or values[gone].max() <= values[mask].min()
        assert not any(moment.row["grown"].values())
    assert sum(nonzeros(result.model).values()) <= CONV_TOTAL // 10


def test_without_an_interval_prunes_are_spread_over_three_quarters(monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=10%", rule="gradual", epochs=4)  # 24 steps, 18 of them for 20 prunes
    assert seen.steps == list(range(18))
    active = seen.active()
    assert active == sorted(active, reverse=True) and active[-1] == CONV_TOTAL // 10
    seen = watched(monkeypatch)
    trained("nonzeros<=10%", rule="gradual", pruning={"number": 6}, epochs=4)
    assert seen.steps == [2, 5, 8, 11, 14, 17]


def test_floors_of_layers_hold_in_the_end(monkeypatch):
    seen = watched(monkeypatch)
    layers = {"0": False, "5": {"max_sparsity": 0.5}}
    trained("nonzeros<=30%", rule="gradual", layers=layers, epochs=2)
    assert seen.active()[-1] == CONV_TOTAL * 30 // 100
    assert bool(seen.last[0]["0"].all())
    assert min(int(moment.after["5"].sum()) for moment in seen.events) >= 32


def test_the_exception_of_the_published_mlp():
    """At S = 0.98 the 100 x 10 output keeps 100 weights, and the others share what is left."""
    model = nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    for rule in ("gradual", "static"):
        result = transform.compress(
            model,
            "sparsity>=98%",
            example_inputs=torch.zeros(1, 784),
            method=SparseTraining(rule=rule),
            layers={"4": {"max_sparsity": 0.9}},
            keep_shapes=True,
        )
        sparsity = 1 - ((1 - 0.98) * 266_200 - 100) / 265_200
        expected = {"4": 100, **{n: round((1 - sparsity) * s) for n, s in REST.items()}}
        assert nonzeros(result.model) == expected


REST = {"0": 784 * 300, "2": 300 * 100}


def test_the_guard_of_units_holds_while_pruning(monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=15%", rule="gradual", keep_units=True)
    for moment in seen.events:
        for name, outputs in {"0": 8, "2": 8, "5": 2}.items():
            assert bool(moment.after[name].reshape(outputs, -1).any(1).all())
    assert seen.active()[-1] == CONV_TOTAL * 15 // 100


def test_the_guard_of_units_is_part_of_the_budget(monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=10%", rule="gradual", keep_units=True)  # the first layer's share is 7 of 8
    assert seen.active()[-1] == CONV_TOTAL // 10


def test_fewer_weights_than_units_are_infeasible():
    with pytest.raises(InfeasibleBudget):
        trained("nonzeros<=2%", rule="gradual", keep_units=True, epochs=2)


def test_pruning_a_trained_network_starts_with_what_it_is(monkeypatch):
    model = conv_net()
    seen = watched(monkeypatch)
    trained("nonzeros<=50%", model=model, rule="gradual", epochs=1)
    for name, value in seen.values[0].items():
        assert torch.equal(value, model.get_submodule(name).weight)
