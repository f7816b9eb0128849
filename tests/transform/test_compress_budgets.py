"""What a budget means once a model is compressed to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transform_nets import SmallConv, TiedNet, made, nonzeros_of, weights_of

import transform
from transform.fingerprint import state_digest

SMALL, SMALL_INPUT = made(SmallConv)
DENSE = sum(weight.numel() for weight in weights_of(SMALL))


def compress(budget, model=SMALL, example=SMALL_INPUT, **options):
    options = {"keep_shapes": True} | options  # counts are as planned, dead channels included
    return transform.compress(model, budget, example_inputs=example, **options)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "forms",
    [
        ("energy<=50%", {"energy": 0.5}, {"energy": "50%"}, transform.Budget(energy="50%")),
        ("nonzeros<=300", {"nonzeros": 300}, {"nonzeros": "0.3k"}, transform.Budget(nonzeros=300)),
        ("sparsity>=90%", "nonzeros<=10%", {"sparsity": "90%"}, {"nonzeros": 0.1}),
        (" energy <= 60% ,nonzeros<=30%", {"nonzeros": 0.3, "energy": 0.6}),
    ],
)
def test_a_string_a_dict_and_a_budget_mean_the_same(forms):
    results = [compress(form) for form in forms]
    assert len({state_digest(result.model) for result in results}) == 1
    assert len({str(result.limits) for result in results}) == 1


@pytest.mark.slow
@settings(max_examples=25)
@given(share=st.integers(3, 100), method=st.sampled_from(["energy", "magnitude"]))
def test_a_share_of_the_weights_is_its_floor_and_is_used_up(share, method):
    result = compress(f"nonzeros<={share}%", method=method)
    [row] = result.certificate.rows
    assert row.maximum == share * DENSE // 100
    assert nonzeros_of(result.model) == row.reached == row.maximum


@pytest.mark.slow
@settings(max_examples=25)
@given(share=st.floats(0.35, 1.0), method=st.sampled_from(["energy", "magnitude"]))
def test_an_energy_budget_holds_and_one_more_weight_would_break_it(share, method):
    result = compress({"energy": share}, method=method)
    [row] = result.certificate.rows
    costs = result.costs.after
    assert row.reached == costs.total.energy.relaxed <= row.maximum
    if method == "energy":  # with fill, nothing that fits is left out
        room = row.maximum - row.reached
        for site in result.graph.sites:
            if costs[site.name].nonzeros < site.size:
                assert site.price(costs.hardware).marginal(costs[site.name].nonzeros) > room


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "key",
    ["energy", "nonzeros", pytest.param("weight_bits", marks=pytest.mark.slow), "sparse_macs"],
)
@pytest.mark.parametrize(
    "method",
    [
        "energy",
        "magnitude",
        pytest.param(transform.Magnitude(scope="layer"), marks=pytest.mark.slow),
    ],
)
def test_all_of_the_original_is_the_identity(key, method):
    model, example = made(SmallConv, seed=3)
    model.train()
    for form in ({key: "100%"}, {key: 1.0}):
        result = compress(form, model, example, method=method)
        assert state_digest(result.model) == state_digest(model)
        [row] = result.certificate.rows
        assert row.reached == row.maximum == row.base


def test_relative_energy_is_over_the_energy_with_every_weight_nonzero():
    model, example = made(SmallConv)
    dense = compress("energy<=100%").certificate.rows[0].reached
    with torch.no_grad():
        model.head.weight[:, ::2] = 0
    table = transform.analyze(model, example)
    result = compress("energy<=50%", model, example)
    [row] = result.certificate.rows
    assert table.total.energy.relaxed < dense
    assert row.base == dense == table.total.dense
    assert row.maximum == dense // 2
    assert dense * 0.49 < row.reached <= row.maximum


def test_what_is_sparse_enough_already_is_left_alone():
    model, example = made(SmallConv)
    with torch.no_grad():
        model.head.weight[:, 10:] = 0
    for budget in ("nonzeros<=10%", "energy<=60%"):
        result = compress(budget, model, example)
        assert state_digest(result.model) == state_digest(model)
        assert result.certificate.holds


@pytest.mark.slow
def test_several_limits_hold_together():
    alone = {
        key: compress(limit).certificate.rows[0]
        for key, limit in (("energy", "energy<=60%"), ("nonzeros", "nonzeros<=20%"))
    }
    result = compress("energy<=60%, nonzeros<=20%, weight_bits<=100 kbit")
    rows = {row.limit: row for row in result.certificate.rows}
    assert set(rows) == {"energy", "nonzeros", "weight_bits"}
    assert result.certificate.holds
    for key, row in alone.items():
        assert rows[key].maximum == row.maximum
        assert rows[key].reached <= row.reached
    assert rows["weight_bits"].reached == 32 * rows["nonzeros"].reached
    # The tighter one binds, and is used up.
    assert rows["nonzeros"].reached == rows["nonzeros"].maximum


@pytest.mark.parametrize("tight", ["energy", "nonzeros"])
def test_either_of_two_limits_may_bind(tight):
    limits = {"energy": "90%", "nonzeros": "95%"} | {tight: "40%"}
    result = compress(limits)
    [row] = [row for row in result.certificate.rows if row.limit == tight]
    assert result.certificate.holds
    assert row.reached > 0.99 * row.maximum - 1


def test_joules_are_understood_where_the_profile_knows_them():
    hardware = {"name": "mine", "joules_per_mac": 2e-12}
    dense = compress("energy<=100%").certificate.rows[0].base
    joules = dense * 2e-12 / 2
    result = compress(f"energy<={joules * 1e9:.6f} nJ", hardware=hardware)
    [row] = result.certificate.rows
    assert abs(row.maximum - dense / 2) < 1e-3 * dense
    assert row.reached <= row.maximum
    assert result.costs.after.hardware.name == "mine"
    with pytest.raises(transform.BudgetError, match=r"in joules.*eyeriss.*joules_per_mac"):
        compress("energy<=1 uJ")


def test_the_hardware_decides_what_energy_is(tmp_path):
    path = tmp_path / "costly.yaml"
    path.write_text("name: costly\ndram_energy: 4000\n")
    rows = [
        compress("energy<=60%", hardware=hardware).certificate.rows[0]
        for hardware in ("eyeriss", path, transform.Hardware("same", dram_energy=4000))
    ]
    assert rows[0].base < rows[1].base
    assert rows[1] == rows[2]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["energy", "nonzeros", "weight_bits", "sparse_macs"])
@pytest.mark.parametrize("method", ["energy", "magnitude", transform.Magnitude(scope="layer")])
def test_the_tightest_value_of_an_infeasible_budget_can_be_reached(key, method):
    with pytest.raises(transform.InfeasibleBudget) as caught:
        compress({key: 2}, method=method)
    error = caught.value
    assert (error.limit, error.asked) == (key, 2)
    assert error.tightest > 2
    assert error.binding_layer in ("conv", "head")
    reached = compress({key: int(error.tightest)}, method=method)
    assert reached.certificate.rows[0].reached == error.tightest
    with pytest.raises(transform.InfeasibleBudget) as again:
        compress({key: int(error.tightest) - 1}, method=method)
    assert again.value.tightest == error.tightest
    message = str(error)
    assert f"{int(error.tightest):,}" in message
    assert "2 (0.00 % of the original)" in message or "2 (" in message
    assert "would lower" in message
    assert "min_density" in message
    assert ("activations" in message) == (key == "energy")


def test_what_the_message_says_would_lower_the_least_does():
    with pytest.raises(transform.InfeasibleBudget) as caught:
        compress({"nonzeros": 5}, method="magnitude")
    looser = transform.Magnitude(min_density=0.0, min_per_layer=1)
    result = compress({"nonzeros": 5}, method=looser)
    assert result.certificate.holds
    assert caught.value.tightest > 5


def test_one_infeasible_limit_of_two_is_named():
    with pytest.raises(transform.InfeasibleBudget) as caught:
        compress("energy<=2%, nonzeros<=90%")
    assert caught.value.limit == "energy"
    with pytest.raises(transform.InfeasibleBudget) as caught:
        compress("energy<=90%, nonzeros<=3")
    assert caught.value.limit == "nonzeros"


SINGLE_WEIGHTS = ("energy", "magnitude")
NOBODY = ("ram",)
STRUCTURED = "bn_gamma, embedding, ising, l1, l2, random, taylor"


@pytest.mark.spread(7)
@pytest.mark.parametrize(
    ("method", "key"),
    [("auto", key) for key in NOBODY]
    + [(m, key) for m in SINGLE_WEIGHTS for key in (*NOBODY, "size", "params", "macs", "latency")],
)
@pytest.mark.parametrize("extra", [{}, {"energy": 0.5}])
def test_limits_that_a_method_does_not_serve_are_refused_by_name(key, method, extra):
    with pytest.raises(transform.UnsupportedBudget) as caught:
        compress({key: 0.5} | extra, method=method)
    message = str(caught.value)
    assert repr(key) in message
    served = "Limits that are served: archive, energy, latency, macs, nonzeros, params, size, "
    served += "sparse_macs, weight_bits"
    others = {
        "size": "bn_gamma, dsr_plus, embedding, ising, l1, l2, quantize, random, taylor",
        "params": "bn_gamma, embedding, hashed, ising, l1, l2, random, taylor",
        "latency": "bn_gamma, ising, l1, l2, random, taylor",
    }.get(key, STRUCTURED)
    assert (served if key in NOBODY else f"These do: {others}") in message


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("", "empty"),
        ("energy", "cannot read"),
        ("energy<=0", "leaves nothing"),
        ("energy<=120%", "above 1"),
        ("energy<=-3%", "leaves nothing|cannot read"),
        ("enrgy<=20%", "Did you mean energy"),
        ("energy<=20 parsecs", "parsecs"),
        ("size<=2 KB", "kB"),
        ("flops<=20%", "1 MAC = 2 FLOPs"),
        ("energy>=20%", "wrong direction"),
        ("energy<=20%, energy<=30%", "two limits"),
        ({"energy": 1}, "two ways"),
        ({"energy": float("nan")}, "not a limit"),
        ({}, "empty"),
        (None, "not a budget"),
        (0.25, "not a budget"),
    ],
)
def test_malformed_budgets_are_refused_before_anything_else(budget, says):
    with pytest.raises(transform.BudgetError, match=says):
        transform.compress(SMALL, budget)


def test_a_weight_used_twice_is_charged_twice_and_counted_once():
    model, example = made(TiedNet)
    once = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    twice_energy = compress("energy<=100%", model, example).certificate.rows[0].base
    once_energy = compress("energy<=100%", once, example).certificate.rows[0].base
    first = transform.analyze(once, example)["0"].dense
    assert twice_energy == once_energy + first
