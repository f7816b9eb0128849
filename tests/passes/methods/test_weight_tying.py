"""Tied weights as a method: the budget to the unit, what banks start from, and what is left."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.dynamic.hashed import bucket_sizes
from passes.dynamic.start import SparseShape
from passes.dynamic.tied_bank import TiedBank
from passes.methods.registry import find_method
from passes.methods.tied import SPEC, TiedWeights, WeightTying
from passes.methods.tied.banks import _counts
from passes.rewrite.tied_weights import TiedWeight
from transform.fingerprint import state_digest

X = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.sum((1, 2, 3)) > 0).long()
DATA = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32, 2)),
        )


WEIGHTS, ALL = 72 + 576 + 64, 72 + 576 + 64 + 8 + 16 + 8 + 2


def tied(budget="params<=20%", *, model=None, layers=None, seed=0, **options):
    return transform.compress(
        net() if model is None else model,
        budget,
        example_inputs=X[:2],
        method=TiedWeights(**options),
        layers=layers,
        seed=seed,
        progress="none",
    )


def trained(budget="params<=20%", *, epochs=1, optimizer="sgd", **options):
    train = transform.TrainConfig(
        epochs=epochs, lr=0.05, select="last", schedule="constant", optimizer=optimizer
    )
    method = TiedWeights(**options)
    return transform.compress(net(), budget, DATA, method=method, train=train, progress="none")


def banks_of(result):
    return {n: m for n, m in result.model.named_modules() if isinstance(m, TiedWeight)}


@pytest.mark.spread(1)
@pytest.mark.parametrize("share", [6, 55])
@pytest.mark.parametrize("dealing", ["balanced", "hashed"])
def test_the_budget_is_reached_to_the_unit(share, dealing):
    result = tied(f"params<={share}%", dealing=dealing)
    limit = ALL * share // 100
    assert result.certificate.rows[0].reached == limit
    assert sum(p.numel() for p in result.model.parameters()) == limit
    assert result.plan.reached == {"params": limit}
    banks = banks_of(result)
    assert list(banks) == ["0.weight", "3.weight", "6.weight"]
    ideal = (limit - (ALL - WEIGHTS)) / WEIGHTS
    for part in banks.values():
        cells = len(part.tie.index)
        assert abs(len(part.bank) - ideal * cells) < 1
        sizes = bucket_sizes(part.tie.index, len(part.bank))
        if dealing == "balanced":
            assert sizes.max() - sizes.min() <= 1
            assert part.tie.unique_parameters == part.bank.numel()
    assert not any(parametrize.is_parametrized(part) for part in result.model.modules())


def test_what_is_held_is_the_bank_and_the_weight_is_made_of_it():
    result = tied(signs=True)
    state = result.model.state_dict()
    assert not any(key.endswith((".index", ".sign")) for key in state)
    for name, part in banks_of(result).items():
        assert state[f"{name}.bank"].numel() == len(part.bank)
        assert set(part().abs().unique().tolist()) <= set(part.bank.abs().tolist())
        told = [d for d in result.decisions if d.layer == name.removesuffix(".weight")]
        assert f"{len(part.bank):,} entries" in told[0].after
        assert "bytes of index in a file: 0" in told[0].why
    assert {row.name: row.weights for row in result.costs.after} == {"0": 72, "3": 576, "6": 64}


def test_bytes_of_a_stored_index_are_told():
    result = tied(index="stored")
    told = {d.layer: d.why for d in result.decisions if d.what.startswith("tied")}
    assert {name: int(why.rsplit(" ", 1)[1]) for name, why in told.items()} == {
        "0": 72,
        "3": 576,
        "6": 64,
    }
    assert "taken by none" in str(tied("params<=60%", dealing="hashed").decisions)


def test_entries_of_kernels_come_as_near_to_the_budget_as_whole_kernels_can():
    result = tied("params<=30%", kernels=True)
    shapes = {n: tuple(part.bank.shape) for n, part in banks_of(result).items()}
    assert [len(shape) for shape in shapes.values()] == [3, 3, 1]
    assert result.certificate.rows[0].reached == ALL * 30 // 100
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    result = tied("params<=30%", kernels=True, model=model)
    left = 648 * 30 // 100 - result.certificate.rows[0].reached
    assert 0 <= left < 9


def test_too_small_a_budget_names_the_tightest_which_can_be_reached():
    with pytest.raises(InfeasibleBudget, match="34 are in no bank") as caught:
        tied("params<=4%")
    assert (caught.value.limit, caught.value.tightest) == ("params", ALL - WEIGHTS + 3)
    result = tied({"params": int(caught.value.tightest)})
    assert [len(part.bank) for part in banks_of(result).values()] == [1, 1, 1]
    with pytest.raises(InfeasibleBudget) as caught:
        tied("params<=10%", min_per_layer=30)
    assert caught.value.tightest == ALL - WEIGHTS + 90


def test_everything_fits_into_a_loose_budget_and_nothing_changes():
    model = net()
    result = tied("params<=100%", model=model)
    assert banks_of(result) == {}
    assert type(result.model) is nn.Sequential
    assert state_digest(result.model) == state_digest(model)
    assert sum("no smaller" in d.why for d in result.decisions) == 3


@settings(max_examples=60)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([1, 1, 4, 9])), min_size=1, max_size=5
    ),
    data=st.data(),
)
def test_banks_hold_what_there_is_within_floors_and_sizes(sizes, data):
    shapes = [SparseShape(f"l{i}", (n, b), block=b) for i, (n, b) in enumerate(sizes)]
    floors = [data.draw(st.integers(1, n)) for n, _ in sizes]
    least = sum(f * s.block for f, s in zip(floors, shapes, strict=True))
    most = sum(s.parameters for s in shapes)
    total = data.draw(st.integers(least, most))
    counts = _counts(shapes, floors, total)
    assert all(f <= c <= s.cells for f, c, s in zip(floors, counts, shapes, strict=True))
    left = total - sum(c * s.block for c, s in zip(counts, shapes, strict=True))
    open_ = [s.block for c, s in zip(counts, shapes, strict=True) if c < s.cells]
    assert 0 <= left < min(open_, default=1)


@pytest.mark.parametrize(("start", "share"), [("draw", 1.0), ("mean", 0.35)])
def test_drawn_values_keep_the_variance_of_the_layer_and_means_do_not(start, share):
    # So many digits that no two weights are alike, and no two means.
    model = nn.Sequential(nn.Linear(200, 100, bias=False, dtype=torch.float64), nn.ReLU())
    x = torch.zeros(1, 200, dtype=torch.float64)
    result = transform.compress(
        model, "params<=10%", example_inputs=x, method=TiedWeights(start=start)
    )
    [part] = banks_of(result).values()
    with torch.no_grad():
        found = float(part().std() / model[0].weight.std())
    assert abs(found - share) < 0.05
    values = set(part.bank.tolist())
    assert (values <= set(model[0].weight.reshape(-1).tolist())) == (start == "draw")
    assert len(values) == len(part.bank)


@pytest.mark.slow
def test_in_one_shot_the_bank_is_nearest_and_in_training_it_is_drawn():
    assert state_digest(tied().model) == state_digest(tied(start="mean").model)
    assert state_digest(tied().model) != state_digest(tied(start="draw").model)
    assert state_digest(trained().model) == state_digest(trained(start="draw").model)
    assert state_digest(trained().model) != state_digest(trained(start="mean").model)


@pytest.mark.slow
def test_one_step_moves_the_bank_by_the_sum_of_virtual_gradients_or_by_their_mean(monkeypatch):
    """The step of plain SGD on every bank, against the gradient of the untied weight."""
    starts = {}
    attach = WeightTying._attach

    def noted(self, graph, size, seed, start):
        attach(self, graph, size, seed, start)
        starts[size.site.name] = graph.parameter(size.site).detach().clone()

    monkeypatch.setattr(WeightTying, "_attach", noted)
    moved = {}
    for rescale in (False, True):
        train = transform.TrainConfig(
            epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", select="last"
        )
        method = TiedWeights(rescale_gradient=rescale, signs=True)
        result = transform.compress(
            net(), "params<=20%", DATA[:1], method=method, train=train, progress="none"
        )
        moved[rescale] = {n: m.bank.detach() - starts[n[0]] for n, m in banks_of(result).items()}
    model, parts = net().train(), banks_of(result)
    for name, part in parts.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.weight = nn.Parameter(part.tie(starts[name[0]]).detach())
    nn.functional.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    for name, part in parts.items():
        gradient = model.get_parameter(name).grad.reshape(-1)
        summed = torch.zeros(len(part.bank)).index_add(0, part.tie.index, gradient * part.tie.sign)
        torch.testing.assert_close(moved[False][name], -0.1 * summed, atol=1e-6, rtol=1e-3)
        repeats = gradient.numel() / len(part.bank)
        torch.testing.assert_close(moved[True][name], -0.1 * summed / repeats, atol=1e-6, rtol=1e-3)
        assert repeats > 5
        assert not torch.equal(moved[True][name], moved[False][name])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adadelta"])
def test_training_stays_within_the_budget_and_learns(optimizer):
    result = trained(optimizer=optimizer, epochs=2, dealing="hashed")
    losses = [row["loss"] for row in result.history if row["event"] == "trained"]
    assert losses[-1] < losses[0]
    assert result.certificate.holds
    assert len(banks_of(result)) == 3


class Shared(nn.Module):
    """Two layers with one weight: input `(N, 12)`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_layers_that_share_a_weight_share_the_bank(tmp_path):
    result = transform.compress(
        Shared(), "params<=40%", example_inputs=torch.ones(2, 12), method="hashed"
    )
    [(name, part)] = banks_of(result).items()
    assert (name, len(part.bank)) == ("first.weight", 168 * 40 // 100 - 24)
    loaded = transform.load(result.save(tmp_path / "saved"))
    assert state_digest(loaded.model) == state_digest(result.model)
    [again] = banks_of(loaded).values()
    assert torch.equal(again.tie.index, part.tie.index)
    x = torch.randn(3, 12)
    assert torch.equal(loaded.model(x), result.model(x))
    assert str(loaded.certificate) == str(result.certificate)
    [limit] = loaded.limits
    assert limit.maximum == 168 * 40 // 100


def test_rules_hold_for_banks():
    result = tied("params<=90%", layers={"3": False})
    assert list(banks_of(result)) == ["0.weight", "6.weight"]
    rule = {"3": {"max_sparsity": 0.5}, "0": False}
    result = tied("params<=60%", layers=rule)
    banks = banks_of(result)
    assert list(banks) == ["3.weight", "6.weight"]
    assert len(banks["3.weight"].bank) >= 288
    told = {d.layer: d for d in result.decisions if d.what == "not tied"}
    assert told["0"].why == "a rule leaves the layer alone"
    with pytest.raises(InfeasibleBudget) as caught:
        tied("params<=20%", layers=rule)
    assert caught.value.binding_layer == "3"


def test_what_cannot_be_tied_stays_and_is_told():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 12)), nn.Linear(12, 12))
    result = transform.compress(
        model, "params<=80%", example_inputs=torch.ones(2, 12), method="hashed"
    )
    assert list(banks_of(result)) == ["1.weight"]
    assert any(d.what == "not tied" and "computed" in d.why for d in result.decisions)
    with pytest.raises(PreconditionError, match="no weight can be tied"):
        transform.compress(
            model[:1], "params<=80%", example_inputs=torch.ones(2, 12), method="hashed"
        )


def test_weights_that_are_not_finite_are_refused():
    model = net()
    with torch.no_grad():
        model[0].weight.view(-1)[:3] = math.nan
    with pytest.raises(PreconditionError, match="3 weights are not finite"):
        tied(model=model)


@pytest.mark.parametrize(
    "options",
    [
        {"dealing": "random"},
        {"signs": 1},
        {"kernels": None},
        {"rescale_gradient": "yes"},
        {"start": "zero"},
        {"index": "both"},
        {"min_per_layer": 0},
        {"min_per_layer": 2.0},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(ArgumentError, match=rf"TiedWeights\.{next(iter(options))}"):
        TiedWeights(**options)


def test_it_is_registered_and_goes_with_what_keeps_it():
    assert find_method("hashed") == (SPEC, TiedWeights())
    with pytest.raises(ArgumentError, match="would not keep its tied"):
        transform.compress(
            net(), "params<=20%", example_inputs=X[:2], method=["hashed", "quantize"]
        )
    with pytest.raises(ArgumentError, match="would not keep its zeros"):
        transform.compress(
            net(), "params<=20%", example_inputs=X[:2], method=["magnitude", "hashed"]
        )
    both = transform.compress(
        net(), "macs<=60%, params<=10%", example_inputs=X[:2], method=["l2", "hashed"]
    )
    assert both.certificate.holds
    assert len(banks_of(both)) == 3


def test_a_tied_result_can_be_compressed_no_further_but_is_a_model_like_any_other():
    result = tied()
    with pytest.raises(PreconditionError, match="computed in forward"):
        transform.compress(result, "nonzeros<=50%", method="magnitude")
    copied = copy.deepcopy(result.model)
    assert torch.equal(copied(X), result.model(X))
    assert transform.analyze(result.model, X[:2]).total.weights == WEIGHTS


@pytest.mark.parametrize(("dealing", "found"), [("balanced", 1351766), ("hashed", -970745)])
def test_the_index_is_the_same_in_every_process(dealing, found):
    tie = TiedBank((40, 50), 99, -(1 << 63), dealing=dealing, sign_key=5)
    assert int((tie.index * tie.sign * torch.arange(2000)).sum()) == found
