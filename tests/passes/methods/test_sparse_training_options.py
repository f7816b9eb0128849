"""Options of when, how much and where: each does what it says, to the unit where there is one."""

from __future__ import annotations

import math

import pytest
import torch
from sparse_training_runs import (
    CONV_TOTAL,
    ROW_BATCHES,
    conv_net,
    row_net,
    same,
    trained,
    watched,
    weights_of,
)

from energy_model.errors import ArgumentError
from passes.methods.sparse_training import SparseTraining

ACTIVE = CONV_TOTAL * 20 // 100
MOVING = ["set_uniform", "dsr_exact", "rigl", "dsr_plus"]


def counts_of(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_sparsities_of_convolutions_and_linear_layers(monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=50%", rule="static", conv_sparsity=0.75, linear_sparsity=0.5, epochs=1)
    assert counts_of(seen.first[0]) == {"0": 18, "2": 144, "5": 32}
    seen = watched(monkeypatch)
    trained("nonzeros<=30%", rule="static", conv_sparsity=0.75, epochs=1)
    most = CONV_TOTAL * 30 // 100
    assert counts_of(seen.first[0]) == {"0": 18, "2": 144, "5": most - 18 - 144}
    seen = watched(monkeypatch)
    trained("nonzeros<=30%", rule="static", start="uniform", linear_sparsity=1.0, epochs=1)
    assert counts_of(seen.first[0])["5"] == 1  # no layer is without a weight


@pytest.mark.spread(2)
@pytest.mark.parametrize("law", ["uniform", "er", "erk", "magnitude"])
def test_laws_of_the_start(law, monkeypatch):
    seen = watched(monkeypatch)
    model = conv_net()
    trained("nonzeros<=15%", model=model, rule="static", start=law, rescale=False, epochs=1)
    first, active = seen.first[0], CONV_TOTAL * 15 // 100
    counts = counts_of(first)
    assert sum(counts.values()) == active
    # Of a layer, the ends of its connections; in ERK the kernel counts as well.
    weight = {
        "uniform": {"0": 72, "2": 576, "5": 64},
        "er": {"0": (8 + 1) * 9, "2": (8 + 8) * 9, "5": 2 + 32},
        "erk": {"0": 8 + 1 + 3 + 3, "2": 8 + 8 + 3 + 3, "5": 2 + 32},
    }["erk" if law == "magnitude" else law]
    for name, count in counts.items():
        assert abs(count - active * weight[name] / sum(weight.values())) < 1
    for name, value in weights_of(model).items():
        kept, gone = value.reshape(-1)[first[name]].abs(), value.reshape(-1)[~first[name]].abs()
        assert (float(kept.min()) >= float(gone.max())) == (law == "magnitude")


def test_periods_by_epoch(monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="set_uniform", every={0: 2, 2: 3, 4: 5}, epochs=6)  # of 6 steps
    assert seen.steps == [2, 4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 35]


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"stop": 0.5}, [2, 4, 6, 8, 10]),
        ({"stop_epoch": 1}, [2, 4]),
        ({"stop": 1.0}, list(range(2, 24, 2))),
        ({"stop_epoch": 0}, []),
        ({"stop": 0.0}, []),
    ],
)
def test_nothing_is_rewired_after_the_stop(options, steps, monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="rigl", **options)
    assert seen.steps == steps


def test_without_a_period_short_trainings_rewire_as_well(monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="dsr_exact", every=None, epochs=10)  # 60 steps: a twentieth is 3
    assert seen.steps == list(range(3, 60, 3))


FALL = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("decay", FALL)
def test_amounts_fall_until_the_stop(decay, monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="dsr_exact", cells=40, decay=decay, stop=0.75)
    assert seen.moved() == [round(40 * FALL[decay](step / 18)) for step in range(2, 18, 2)]
    assert (seen.moved()[-1] < 5) == (decay != "constant")


@pytest.mark.parametrize("drop", ["global", "saliency"])
def test_shares_of_what_is_active(drop, monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="dsr_exact", drop=drop, share=0.25)
    assert set(seen.moved()) == {round(0.25 * ACTIVE)}


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["dsr_exact", "dsr_plus", "set_uniform", "set", "rigl"])
def test_cells_are_those_of_all_layers_together(rule, monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=50%", rule=rule, cells=12, decay="constant", start="uniform")
    assert seen.events
    for moved in seen.moved():
        if rule in ("rigl", "dsr_plus"):
            assert 0 <= moved <= 12  # what was just dropped and comes back is not a change
        else:  # of two signs in each of three layers, rounded apart
            assert abs(moved - 12) <= 3 * (rule == "set")


DROPS = {
    "threshold": "below",
    "proportional_threshold": "below",
    "global": "all",
    "layer": "each",
    "layer_by_sign": "signs",
    "saliency": "all",
    "layer_saliency": "each",
}


def check_drop(drop, moment, share):
    """What an event dropped, against the definition of the drop on the weights before it."""
    values, kind = dict(moment.values), DROPS[drop]
    if "saliency" in drop:
        values = {name: w * moment.gradients[name] for name, w in values.items()}
    values = {n: values[n].reshape(-1)[m] for n, m in moment.before.items()}
    gone = {n: moment.dropped[n][m] for n, m in moment.before.items()}
    if kind == "below":
        for name, value in values.items():
            low = value.abs() < moment.row["threshold"]
            assert torch.equal(gone[name], low) or int((~gone[name]).sum()) == 1
    elif kind == "all":
        value, lost = torch.cat(list(values.values())).abs(), torch.cat(list(gone.values()))
        assert int(lost.sum()) == round(share * value.numel())
        alone = torch.cat([torch.full_like(g, int((~g).sum()) == 1) for g in gone.values()])
        assert float(value[lost].max()) <= float(value[~lost & ~alone].min())
    else:
        for name, value in values.items():
            sides = [value < 0, value >= 0] if kind == "signs" else [value == value]
            for side in sides:
                lost = gone[name] & side
                assert int(lost.sum()) == round(share * int(side.sum()))
                if bool(lost.any()):
                    assert value[lost].abs().max() <= value[side & ~lost].abs().min()


@pytest.mark.spread(1)
@pytest.mark.parametrize("allocate", ["survivors", "same_layer"])
@pytest.mark.parametrize("drop", DROPS)
def test_every_drop_with_every_allocation(drop, allocate, monkeypatch):
    """The ablations of Mostafa and Wang, ICML 2019, and the drops that they do not have."""
    seen = watched(monkeypatch)
    trained("nonzeros<=40%", rule="dsr", drop=drop, allocate=allocate, share=0.3)
    changed = 0
    for moment in seen.events:
        check_drop(drop, moment, 0.3)
        changed += moment.row["dropped"] != moment.row["grown"]
    assert sum(seen.moved()) > 100
    assert (changed > 0) == (allocate == "survivors")


def test_damping_goes_from_the_same_layer_to_survivors(monkeypatch):
    runs = {}
    for name, options in {
        "same": {"allocate": "same_layer"},
        "none": {"damping": 0.0},
        "half": {"damping": 0.5},
        "full": {"damping": 1.0},
        "default": {},
    }.items():
        seen = watched(monkeypatch)
        trained("nonzeros<=40%", rule="dsr_exact", share=0.3, epochs=2, **options)
        runs[name] = seen.masks()
    assert same(runs["none"], runs["same"]) and same(runs["full"], runs["default"])
    assert not same(runs["half"], runs["none"]) and not same(runs["half"], runs["full"])


def misses(drop, monkeypatch):
    """Of the last events of a run, by how much they missed what was due, as a share of it."""
    seen = watched(monkeypatch)
    options = {"rule": "dsr", "drop": drop, "share": 0.2, "every": 1}
    trained("nonzeros<=60%", model=row_net(), data=ROW_BATCHES, epochs=12, **options)
    due = round(0.2 * seen.active()[0])
    late = seen.moved()[len(seen.events) // 2 :]
    return sum(abs(found - due) for found in late) / len(late) / due


@pytest.mark.slow
def test_the_proportional_threshold_misses_by_less(monkeypatch):
    assert misses("proportional_threshold", monkeypatch) < 0.8 * misses("threshold", monkeypatch)


def lost_units(moment, name, outputs=8):
    """Output channels that had weights before the event and none of these after its drop."""
    before, gone = moment.before[name].reshape(outputs, -1), moment.dropped[name]
    return int((before.any(1) & ~(before & ~gone.reshape(outputs, -1)).any(1)).sum())


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", [*MOVING, "dsr", "set"])
def test_no_unit_loses_its_last_weight_to_a_drop(rule, monkeypatch):
    drop = {"drop": "proportional_threshold"} if rule == "dsr" else {}
    for keep in (True, False):
        seen = watched(monkeypatch)
        options = {"rule": rule, "share": 0.7, "every": 1, "keep_units": keep, "epochs": 4} | drop
        trained("nonzeros<=12%", **options)
        lost = [lost_units(moment, name) for moment in seen.events for name in ("0", "2")]
        if keep:
            assert not any(lost)
        else:
            assert any(lost)


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    "options",
    [
        {"every": 1000},
        {"stop_epoch": 9},
        {"every": {0: 2, 10: 4}},
        {"every": {0: 2}, "stop_epoch": 9},
        {"every": {0: 100}},
        {"rule": "gradual", "pruning": {"number": 5, "interval": 2}},
        {"rule": "gradual", "pruning": {"number": 1, "interval": 1, "start_epoch": 4}},
    ],
)
def test_schedules_that_are_longer_than_the_training(options):
    with pytest.raises(ArgumentError, match=r"longer|no event|the last prune is due"):
        trained(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "static", "every": 5},
        {"rule": "static", "share": 0.1},
        {"rule": "gradual", "grow": "random"},
        {"rule": "gradual", "masks": "folder"},
        {"rule": "gradual", "start": "magnitude"},
        {"pruning": {"number": 3}},
        {"cells": 5, "share": 0.1},
        {"stop": 0.5, "stop_epoch": 3},
        {"masks": "folder", "start": "erk"},
        {"group_lasso": True},
        {"l1": -1.0},
        {"gamma": -1.0},
        {"damping": 1.5},
        {"conv_sparsity": 1.1},
        {"every": {3: 2}},
        {"granularity": "columns"},
        {"cells": 1.5},
        {"rescale": 1.5},
        {"masks": ""},
    ],
)
def test_options_that_say_nothing_or_contradict_each_other(options):
    with pytest.raises(ArgumentError):
        trained(**options)


def test_every_option_is_written_down():
    config = SparseTraining(
        rule="set_uniform", every={0: 10, 5: 20}, cells=30, decay="linear", stop_epoch=4, l1=1e-4
    )
    assert SparseTraining.from_dict(config.to_dict()) == config
    pruned = SparseTraining(rule="gradual", pruning={"number": 4, "form": "exponential"})
    assert SparseTraining.from_dict(pruned.to_dict()) == pruned


@pytest.mark.slow
def test_two_runs_are_one(monkeypatch):
    runs = []
    for seed in (0, 0, 1):
        seen = watched(monkeypatch)
        result = trained(rule="dsr_exact", seed=seed)
        runs.append((seen.masks(), list(result.model.parameters())))
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])
    assert not same(runs[0][0], runs[2][0])
