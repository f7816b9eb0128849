"""Rules for single layers: selection, reading, and that every method respects them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import transform
from passes.inputs import Call
from passes.selectors import select_layers
from passes.tracing.trace import trace


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3), nn.Flatten(), nn.Linear(160, 30)
    )


EXAMPLE = torch.zeros(2, 1, 8, 8)


def rules(layers):
    return select_layers(trace(net(), Call((EXAMPLE,))), layers)


def densities(layers):
    return {name: rule.min_density for name, rule in rules(layers).items()}


def test_globs_types_and_functions_select():
    assert densities({"*": False}) == {"0": 1.0, "2": 1.0, "4": 1.0}
    assert densities({nn.Conv2d: False}) == {"0": 1.0, "2": 1.0}
    small = {lambda name, module: module.weight.numel() < 100: {"min_density": 0.5}}
    assert densities(small) == {"0": 0.5}


def test_names_with_brackets_are_names():
    graph = trace(nn.MultiheadAttention(8, 2), Call((EXAMPLE[0], EXAMPLE[0] + 1, EXAMPLE[0] + 1)))
    assert list(select_layers(graph, {"in_proj_weight[0:8]": False})) == ["in_proj_weight[0:8]"]


def test_later_rules_win_and_true_takes_a_rule_away():
    layers = {"*": False, "2": {"max_sparsity": 0.75}, "4": True}
    assert densities(layers) == {"0": 1.0, "2": 0.25, "4": 0.0}


def test_a_share_of_a_tenth_is_exact():
    rule = rules({"4": {"max_sparsity": 0.9}})["4"]
    assert rule.least(4800) == 480
    assert rule.least(4801) == 481


@pytest.mark.parametrize("selector", ["missing", nn.LSTM, lambda name, module: False])
def test_what_matches_nothing_is_an_error(selector):
    with pytest.raises(transform.ArgumentError, match=r"matches no layer.*The layers are 0, 2, 4"):
        rules({selector: False})


@pytest.mark.parametrize(
    "rule",
    [
        None,
        0.5,
        {},
        {"max_sparsity": 1.5},
        {"max_sparsity": True},
        {"bits": 4},
        {"min_density": -1},
    ],
)
def test_what_is_no_rule_is_an_error(rule):
    with pytest.raises(transform.ArgumentError, match="is no rule"):
        rules({"0": rule})


@pytest.mark.spread(1)
@pytest.mark.parametrize("train", [False, 2])
@pytest.mark.parametrize(
    "method", ["energy", "magnitude", transform.Magnitude(scope="layer")], ids=str
)
def test_every_method_respects_the_rules(method, train):
    model = net()
    layers = {"0": False, "4": {"max_sparsity": 0.5}}
    data = [(torch.randn(8, 1, 8, 8), torch.arange(8))]
    result = transform.compress(
        model, "nonzeros<=60%", data, method=method, layers=layers, train=train
    )
    after = {row.name: row for row in result.costs.after}
    assert after["0"].nonzeros == after["0"].weights
    assert after["4"].nonzeros >= after["4"].weights // 2
    assert result.certificate.holds
    if train is False:
        assert torch.equal(result.model[0].weight, model[0].weight)


def test_rules_that_leave_no_room_are_infeasible():
    with pytest.raises(transform.InfeasibleBudget) as caught:
        transform.compress(net(), "nonzeros<=10%", example_inputs=EXAMPLE, layers={"4": False})
    assert caught.value.binding_layer == "4"


def test_a_method_that_ignores_a_rule_is_caught(monkeypatch):
    monkeypatch.setattr("passes.methods.problem._least", lambda graph, site, least, density: 0)
    rule = {"4": {"max_sparsity": 0.1}}
    with pytest.raises(transform.PostconditionError, match="the rule says at least"):
        transform.compress(net(), "nonzeros<=20%", example_inputs=EXAMPLE, layers=rule)
