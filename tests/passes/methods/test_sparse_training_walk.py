"""DeepR by name: its options, its history, and runs that go on."""

from __future__ import annotations

import pytest
import torch
from sparse_training_runs import CONV_TOTAL, Stop, Stopped, trained, watched

import transform
from energy_model.errors import ArgumentError
from passes.dynamic.engine import RewireEngine
from passes.dynamic.schedule import Clock
from passes.dynamic.walk import Walk
from passes.methods.sparse_training import SparseTraining
from passes.methods.sparse_training.overrides import rule_for
from transform.fingerprint import state_digest

ORIGINAL = {"temperature": {0: 1e-3, 2: 1e-4}, "l1": 1e-4}
VARIANT = {"noise": "gradient", "signs": "first_update", "eta": 0.01, "temperature": 1e-1}
WALKS = {"script": None, "original": ORIGINAL, "variant": VARIANT}
CLOCK = Clock(4, 6)


def rewired(result):
    return [row for row in result.history if "rewiring" in row]


@pytest.mark.spread(1)
@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("budget", ["nonzeros<=20%", "energy<=60%"])
def test_every_layer_keeps_its_number_of_weights(walk, budget, monkeypatch):
    seen = watched(monkeypatch)
    result = trained(budget, rule="deepr", every=1, walk=walk)
    [first], [last] = seen.first, seen.last
    assert {n: int(m.sum()) for n, m in last.items()} == {n: int(m.sum()) for n, m in first.items()}
    assert not all(torch.equal(first[name], last[name]) for name in first)
    assert result.certificate.holds
    if budget.startswith("nonzeros"):
        assert sum(int(m.sum()) for m in last.values()) == CONV_TOTAL * 20 // 100


def test_the_history_has_a_row_for_every_epoch():
    rows = rewired(trained(rule="deepr", every=1, walk=ORIGINAL))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [6, 12, 18, 24]
    assert [row["events"] for row in rows] == [6, 6, 6, 6]
    assert sum(sum(row["dropped"].values()) for row in rows) > 0
    assert all(row["dropped"] == row["grown"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "walk",
    [
        pytest.param(ORIGINAL, id="original", marks=pytest.mark.slow),
        pytest.param(VARIANT, id="variant"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(walk, tmp_path):
    options = {"rule": "deepr", "every": 1, "walk": walk}
    whole = trained(**options)
    with pytest.raises(Stop):
        trained(data=Stopped(15), out=tmp_path, **options)
    again = trained(out=tmp_path, **options)
    assert state_digest(again.model) == state_digest(whole.model)

    def told(result):
        return [{k: v for k, v in r.items() if k != "milliseconds"} for r in rewired(result)]

    assert told(again) == told(whole)


def test_noise_and_rewiring_end_at_the_stop(monkeypatch):
    seen, masks, weights = watched(monkeypatch), {}, {}
    after = RewireEngine.after_step

    def stepped(engine, step, optimizer):
        row = after(engine, step, optimizer)
        masks[step] = torch.cat([engine.mask(m) for m in engine.members])
        weights[step] = torch.cat([engine.graph.weight(m.site).flatten() for m in engine.members])
        return row

    monkeypatch.setattr(RewireEngine, "after_step", stepped)
    lr = {"schedule": {0: 0.05, 2: 0.0}, "weight_decay": 0.0}  # then only a walk could move them
    hot = {**ORIGINAL, "temperature": 1e-2, "eta": 0.1}
    trained(rule="deepr", every=1, walk=hot, stop=0.75, train=lr)
    assert seen.engine.walker.stop == 18
    moved = [not torch.equal(weights[n], weights[n - 1]) for n in range(13, 24)]
    assert moved == [True] * 5 + [False] * 6
    assert not torch.equal(masks[17], masks[11])
    assert torch.equal(masks[17], masks[23])


def test_the_walk_of_the_configuration_is_that_of_the_rule():
    rule = rule_for(SparseTraining(rule="deepr", walk=VARIANT), CLOCK)
    assert rule.walk == Walk(**VARIANT)
    assert rule.schedule.step_zero and [*rule.schedule.events(CLOCK)] == [*range(24)]
    assert rule_for(SparseTraining(rule="deepr"), CLOCK).walk == Walk()
    config = SparseTraining(rule="deepr", walk=VARIANT, every=3)
    assert [*rule_for(config, CLOCK).schedule.events(CLOCK)] == [*range(0, 24, 3)]
    again = SparseTraining.from_dict(config.to_dict())
    assert again.walk.to_dict() == config.walk.to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "set", "walk": {}}, r"SparseTraining\.walk"),
        ({"walk": 3}, r"SparseTraining\.walk"),
        ({"walk": {"temperature": -1}}, r"Walk\.temperature"),
        ({"walk": {"temperature": {0: 1, 3: -1e-9}}}, r"Walk\.temperature"),
        ({"walk": {"heat": 1}}, "unknown fields"),
        ({"drop": "global"}, r"SparseTraining\.drop"),
        ({"share": 0.1}, r"SparseTraining\.share"),
        ({"cells": 5}, r"SparseTraining\.cells"),
        ({"decay": "cosine"}, r"SparseTraining\.decay"),
        ({"new_values": "normal"}, r"SparseTraining\.new_values"),
        ({"granularity": "kernels"}, r"SparseTraining\.granularity"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        SparseTraining(**{"rule": "deepr"} | options)


@pytest.mark.spread(1)
@pytest.mark.parametrize("extra", [{"grow": "gradient"}, {"keep_units": True}, {"l1": 1e-3}])
def test_it_goes_with_other_options(extra):
    result = trained("nonzeros<=50%", rule="deepr", every=1, walk=ORIGINAL, **extra)
    assert isinstance(result, transform.Compressed)
    assert result.certificate.holds
    assert sum(sum(row["dropped"].values()) for row in rewired(result)) > 0
