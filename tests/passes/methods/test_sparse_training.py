"""Dynamic sparse training: the number of weights is the budget from the first step to the last."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sparse_training_runs import Stop, Stopped
from torch import nn

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.dynamic.engine import RewireEngine
from passes.dynamic.rule import RULES
from passes.methods import registry
from passes.methods.sparse_training import SPEC, SparseTraining
from transform.fingerprint import state_digest

X = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.sum((1, 2, 3)) > 0).long()
DATA = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    entry = SimpleNamespace(name=SPEC.name, value="a test", load=lambda: SPEC)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )


TOTAL = 72 + 576 + 64
OTHERS = ("set", "dsr", "rigl")


def often(rule):
    """So that the few steps of these tests have events."""
    return {"every": 2} if RULES[rule].schedule else {}


def trained(budget="nonzeros<=20%", *, epochs=4, layers=None, out=None, data=DATA, **options):
    return transform.compress(
        net(),
        budget,
        data=data,
        method=SparseTraining(**often(options.get("rule", "dsr_plus")) | options),
        train=transform.TrainConfig(epochs=epochs, lr=0.05, select="last"),
        keep_shapes=True,
        layers=layers,
        out=out,
        progress="none",
    )


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_exactly_as_many_weights_as_are_allowed(rule, monkeypatch):
    engines = []
    attach = RewireEngine.attach
    monkeypatch.setattr(
        RewireEngine, "attach", lambda self, masks: (engines.append(self), attach(self, masks))[1]
    )
    baked = []
    original = SPEC.method.finalize

    def finalize(self, graph, run):
        [engine] = engines
        baked.append(sum(int(engine.mask(m).sum()) for m in engine.members))
        original(self, graph, run)

    monkeypatch.setattr(SPEC.method, "finalize", finalize)
    result = trained(rule=rule)
    assert baked == [TOTAL * 20 // 100], rule
    assert result.costs.after.total.nonzeros <= baked[0]
    assert result.certificate.holds


@pytest.mark.slow
def test_the_history_has_a_row_for_every_event():
    rows = [row for row in trained(rule="dsr_exact").history if "rewiring" in row]
    assert [row["rewiring"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["step"] for row in rows] == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    for row in rows:
        assert sum(row["dropped"].values()) == sum(row["grown"].values()) > 0
        assert sum(row["active"].values()) == TOTAL * 20 // 100
        assert row["milliseconds"] >= 0
    static = trained(rule="static").history
    assert not [row for row in static if "rewiring" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=pytest.mark.slow) for r in OTHERS] + ["dsr_plus"]
)
def test_a_stopped_run_goes_on_bit_for_bit(rule, tmp_path):
    whole = trained(rule=rule)
    with pytest.raises(Stop):
        trained(rule=rule, data=Stopped(15, DATA), out=tmp_path)
    again = trained(rule=rule, out=tmp_path)
    assert state_digest(again.model) == state_digest(whole.model)


@pytest.mark.slow
def test_outputs_keep_their_size_at_the_start():
    def weights(**options):
        return trained(epochs=1, rule="static", start="erk", **options).model

    plain, scaled = weights(rescale=False), weights()
    ratio = scaled[2].weight.abs().sum() / plain[2].weight.abs().sum()
    assert 1.5 < ratio.item() < 4


def test_layers_that_are_left_alone_stay_dense():
    result = trained("nonzeros<=50%", layers={"0": False, "5": {"min_density": 0.5}})
    costs = result.costs.after
    nonzeros = {name: costs[name].nonzeros for name in ("0", "2", "5")}
    assert nonzeros["0"] == 72
    assert sum(nonzeros.values()) <= TOTAL // 2


def test_in_one_shot_the_largest_stay():
    model = net()
    result = transform.compress(
        model, "nonzeros<=20%", example_inputs=X, method=SparseTraining(), keep_shapes=True
    )
    assert result.costs.after.total.nonzeros == TOTAL * 20 // 100
    for before, after in zip(model.parameters(), result.model.parameters(), strict=True):
        kept = after != 0
        assert torch.equal(after[kept], before[kept])
        if before.dim() > 1 and not bool(kept.all()):
            assert before[~kept].abs().max() <= before[kept].abs().min()


def test_too_little_for_every_layer_is_infeasible():
    with pytest.raises(InfeasibleBudget):
        trained("nonzeros<=2")


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "nosuch"},
        {"start": "x"},
        {"every": 0},
        {"share": 2},
        {"stop": -1},
        {"min_per_layer": 0},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ArgumentError, match=r"not allowed|unknown rule"):
        SparseTraining(**options)


@pytest.mark.slow
def test_a_number_of_cells_is_shared_out_over_the_layers():
    rows = [r for r in trained(rule="set_uniform", cells=20).history if "rewiring" in r]
    assert rows
    for row in rows:
        assert sum(row["dropped"].values()) == 20
        assert row["dropped"]["2"] > row["dropped"]["0"]
