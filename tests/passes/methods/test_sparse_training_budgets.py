"""Whatever is limited, rewiring stays within it, uses it up, and says what the least would be."""

from __future__ import annotations

import pytest
import torch
from sparse_training_runs import (
    CONV_TOTAL,
    IMAGES,
    ROW_BATCHES,
    conv_net,
    nonzeros,
    row_net,
    trained,
    watched,
    weights_of,
)

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.methods.sparse_training import SparseTraining

MOVING = ["set", "set_uniform", "dsr", "dsr_exact", "rigl", "dsr_plus"]
# Multiply-accumulates of one weight: positions of the output.
MACS = {"0": 16, "2": 4, "5": 1}
ALL_MACS = 72 * 16 + 576 * 4 + 64


def one_shot(budget, **options):
    layers = options.pop("layers", None)
    return transform.compress(
        conv_net(),
        budget,
        example_inputs=IMAGES,
        method=SparseTraining(**options),
        keep_shapes=True,
        layers=layers,
    )


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["set_uniform", "dsr", "rigl", "dsr_plus", "gradual"])
def test_energy_holds_after_every_event_and_is_used_up(rule, monkeypatch):
    seen = watched(monkeypatch)
    result = trained("energy<=60%", rule=rule)
    assert result.certificate.holds
    engine = seen.engine
    assert engine.fits is not None
    moments = seen.events[-1:] if rule == "gradual" else seen.events
    assert len(moments) >= (1 if rule == "gradual" else 8)
    for moment in moments:
        assert engine.fits(moment.counts)
        assert not engine.fits([n + 2 for n in moment.counts])
    assert result.costs.after.total.nonzeros <= sum(seen.events[-1].counts)


def test_multiply_accumulates_of_nonzeros_counted_by_hand(monkeypatch):
    seen = watched(monkeypatch)
    result = trained("sparse_macs<=40%", rule="dsr_plus", gamma=0.0)
    most = ALL_MACS * 40 // 100
    assert result.certificate.rows[0].maximum == most
    for moment in seen.events:
        used = sum(int(mask.sum()) * MACS[name] for name, mask in moment.after.items())
        assert most - 2 * sum(MACS.values()) < used <= most
    assert sum(n * MACS[name] for name, n in nonzeros(result.model).items()) <= most


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("budget", "binding"),
    [
        ("nonzeros<=20%, energy<=70%", "nonzeros"),
        ("nonzeros<=60%, energy<=60%", "energy"),
        ("nonzeros<=60%, energy<=90%, sparse_macs<=30%", "sparse_macs"),
    ],
)
def test_of_several_limits_all_hold_and_one_binds(budget, binding, monkeypatch):
    seen = watched(monkeypatch)
    result = trained(budget, rule="dsr_exact")
    assert result.certificate.holds
    rows = {row.limit: row for row in result.certificate.rows}
    assert len(rows) == budget.count("<=")
    for moment in seen.events:
        assert seen.engine.fits(moment.counts)
        assert not seen.engine.fits([n + 2 for n in moment.counts])
    shares = {key: row.reached / row.maximum for key, row in rows.items()}
    assert max(shares, key=shares.get) == binding
    assert shares[binding] > 0.95


@pytest.mark.slow
def test_bits_of_weights_are_counted_for_active_ones_only(monkeypatch):
    seen = watched(monkeypatch)
    result = trained("weight_bits<=50%", model=row_net(), data=ROW_BATCHES, rule="dsr_exact")
    assert result.certificate.holds
    total = sum(w.numel() for w in weights_of(row_net()).values())
    assert seen.active() == [total // 2] * len(seen.events)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("key", "share", "options"),
    [
        ("energy", "1%", {}),
        ("sparse_macs", "0.1%", {}),
        ("nonzeros", "2", {}),
        ("nonzeros", "5", {"granularity": "kernels"}),
        ("nonzeros", "10%", {"min_per_layer": 40}),
        ("nonzeros", "20%", {"conv_sparsity": 0.5}),
        ("energy", "55%", {"conv_sparsity": 0.25}),
        ("nonzeros", "10%", {"layers": {"2": {"max_sparsity": 0.8}}}),
    ],
)
def test_what_is_impossible_names_the_least_that_is_possible(key, share, options):
    with pytest.raises(InfeasibleBudget) as caught:
        one_shot(f"{key}<={share}", **options)
    error = caught.value
    assert error.limit == key and error.tightest > error.asked
    assert one_shot(f"{key}<={error.tightest}", **options).certificate.holds
    with pytest.raises(InfeasibleBudget):
        one_shot(f"{key}<={error.tightest - 1}", **options)


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["set_uniform", "rigl", "dsr_exact", "dsr_plus"])
def test_rules_for_single_layers_hold_at_every_event(rule, monkeypatch):
    seen = watched(monkeypatch)
    layers = {"0": False, "5": {"max_sparsity": 0.5}}
    result = trained("nonzeros<=35%", layers=layers, rule=rule, share=0.6)
    for moment in seen.events:
        assert "0" not in moment.row["dropped"]
        assert bool(moment.after["0"].all())
        assert int(moment.after["5"].sum()) >= 32
        assert sum(moment.counts) == CONV_TOTAL * 35 // 100
    assert nonzeros(result.model)["0"] == 72


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["set_uniform", "rigl", "dsr_exact", "dsr_plus"])
def test_every_layer_keeps_its_least_number(rule, monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=20%", rule=rule, min_per_layer=15, share=0.8)
    assert min(min(moment.counts) for moment in seen.events) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("option", ["layers", "min_per_layer"])
def test_floors_hold_under_a_threshold_too(option, monkeypatch):
    seen = watched(monkeypatch)
    value = {"5": {"min_density": 0.5}} if option == "layers" else 32
    options = {"rule": "dsr", "drop": "proportional_threshold", "share": 0.6, "every": 1}
    trained("nonzeros<=30%", epochs=6, **options, **{option: value})
    assert min(int(moment.after["5"].sum()) for moment in seen.events) >= 32


def share_of_expensive(seen):
    """Of all active weights, those of the first layer, whose weights cost most."""
    counts = seen.events[-1].counts
    return counts[0] / sum(counts)


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "less"), [("energy<=70%", 0.95), ("sparse_macs<=40%", 0.8)])
def test_weights_that_cost_more_become_fewer(budget, less, monkeypatch):
    shares = {}
    for gamma in (None, 0.0, 1.0):
        seen = watched(monkeypatch)
        trained(budget, rule="dsr_exact", gamma=gamma, share=0.5, every=1)
        shares[gamma] = share_of_expensive(seen)
    assert shares[1.0] < less * shares[0.0]
    assert shares[None] == shares[1.0]  # what a limit on cost asks for by itself


def test_without_costs_layers_grow_by_what_survived(monkeypatch):
    """Mostafa and Wang, ICML 2019, algorithm 1: G = K R_l / R, to less than one weight."""
    for options in ({}, {"gamma": 0.0}):
        seen = watched(monkeypatch)
        trained(rule="dsr_exact", share=0.3, **options)
        for moment in seen.events:
            kept = {n: int((m & ~moment.dropped[n]).sum()) for n, m in moment.before.items()}
            total = sum(moment.row["dropped"].values())
            free = {n: int((~m).sum()) for n, m in moment.before.items()}
            for name, grown in moment.row["grown"].items():
                ideal = total * kept[name] / sum(kept.values())
                assert ideal < free[name]
                assert abs(grown - ideal) < 1


@pytest.fixture(scope="module")
def dense_run():
    """Parameters after two epochs without any mask: plain training of everything else."""
    return list(trained("nonzeros<=100%", rule="static", epochs=2).model.parameters())


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", MOVING)
def test_a_full_network_rewires_nothing(rule, dense_run, monkeypatch):
    seen = watched(monkeypatch)
    result = trained("nonzeros<=100%", rule=rule, epochs=2)
    assert seen.events
    assert all(moment.counts == [72, 576, 64] for moment in seen.events)
    assert not any(moment.row["dropped"] for moment in seen.events)
    for mine, dense in zip(result.model.parameters(), dense_run, strict=True):
        assert torch.equal(mine, dense)


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["set_uniform", "dsr_exact", "rigl", "dsr_plus"])
def test_more_is_dropped_than_there_is_room_for(rule, monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=98%", rule=rule, start="uniform", share=0.9)
    most = CONV_TOTAL * 98 // 100
    assert seen.active() == [most] * len(seen.events)


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["set_uniform", "rigl", "dsr_plus"])
def test_nearly_full_under_a_limit_on_cost(rule, monkeypatch):
    seen = watched(monkeypatch)
    trained("energy<=99%", rule=rule, start="uniform")
    first = sum(int(mask.sum()) for mask in seen.first[0].values())
    assert min(seen.active()) >= first - 2


def test_a_limit_that_the_method_does_not_serve():
    with pytest.raises(transform.UnsupportedBudget, match="latency"):
        trained("latency<=50%")
    with pytest.raises(ArgumentError):
        trained("nonzeros<=0")
