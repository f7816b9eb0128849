"""What is searched over: nodes, budget, and what a model costs once it is trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ising_nets import compressed, conv_data, conv_net, run_of, seeded
from torch import nn

from energy_model.hardware import load_hardware
from passes.inputs import Batch, as_call
from passes.methods.ising import Ising
from passes.methods.ising.samples import scored_rows
from passes.methods.ising.setting import Setting, everything
from passes.methods.ising.trained_values import as_trained
from passes.methods.kept_units import kept_rows
from passes.tracing.trace import trace
from transform.fingerprint import state_digest

HARDWARE = load_hardware("eyeriss")


def traced(model):
    return trace(model, as_call(model, conv_data()[0][0]))


def setting(config=None, run=None, model=None, budget="macs<=50%"):
    graph = traced(conv_net() if model is None else model)
    limits = run_of(graph, conv_data(), budget).limits
    return graph, Setting.of(graph, HARDWARE, limits, config or Ising(), run)


def test_units_and_rows_are_the_same_state():
    _, found = setting()
    bits = torch.rand(28, generator=torch.Generator().manual_seed(0)) < 0.5
    units = found.units(bits)
    assert units["0"] == bits[:12].nonzero()[:, 0].tolist()
    assert torch.equal(found.bits(units), bits)
    rows = {row.layer: row for row in kept_rows(found.groups, units)}
    assert (rows["0"].size, rows["0"].keep) == (12, len(units["0"]))
    assert {rows[g.name].why for g in found.groups if g.frozen} <= {g.why for g in found.groups}
    whole = {row.layer: row.why for row in kept_rows(found.groups, found.units(~bits | bits))}
    assert whole["0"] == whole["3"] == "all kept"
    least = {"0": [3], "3": list(range(5))}
    why = {row.layer: row.why for row in kept_rows(found.groups, least)}
    assert (why["0"], why["3"]) == ("at its minimum", "by the budget")
    assert found.reached(everything(found.layout))["macs"] == found.repair.limits[0].base


def test_scores_have_a_mean_of_one_in_each_group():
    graph, found = setting()
    for config, power in ((Ising(), 2), (Ising(importance="l1"), 1)):
        scores = found.scores(graph, config, None)
        assert scores[:12].mean() == pytest.approx(1)
        assert scores[12:].mean() == pytest.approx(1)
        model = graph.module
        own = model[0].weight.abs().pow(power).sum((1, 2, 3)) + model[1].weight.abs().pow(power)
        own = (own + model[3].weight.abs().pow(power).sum((0, 2, 3))).detach().double()
        assert torch.allclose(scores[:12], own / own.mean(), atol=1e-6)


def test_gradients_decide_if_they_are_asked_for():
    graph, found = setting()
    asked = []

    def gradients(model, batches):
        asked.append((model, batches))
        return {n: torch.ones_like(p) * (n == "0.weight") for n, p in model.named_parameters()}

    scores = found.scores(graph, Ising(importance="taylor"), gradients)
    [(model, batches)] = asked
    assert model is graph.module and batches > 1
    own = graph.module[0].weight.abs().sum((1, 2, 3)).detach().double()
    assert torch.allclose(scores[:12], own / own.mean(), atol=1e-6)


def test_a_copy_as_trained_holds_no_zeros_and_no_two_alike():
    model = conv_net()
    with torch.no_grad():
        model[3].weight[:, :4] = 0
        model[0].bias.zero_()
    model[0].bias.requires_grad_(False)
    graph = traced(model)
    digest = state_digest(model)
    own = as_trained(graph)
    assert state_digest(model) == digest
    assert own.module[0].bias.eq(0).all()
    weights = [p for n, p in own.module.named_parameters() if n != "0.bias"]
    for tensor in (*weights, own.module[1].running_mean, own.module[1].running_var):
        assert (tensor > 0).all()
        assert len(tensor.unique()) > 1
    assert own.graph_module.get_submodule("3").weight is own.module[3].weight
    assert state_digest(as_trained(graph).module) == state_digest(own.module)
    own = as_trained(graph, weights=False)
    assert all(map(torch.equal, own.module.parameters(), model.parameters()))
    assert (own.module[1].running_mean > 0).all()


def test_in_training_zeros_do_not_count_as_saved():
    model = conv_net()
    with torch.no_grad():
        model[3].weight[:, :6] = 0
    trained = replace(run_of(traced(model), conv_data(), "nonzeros<=50%"), one_shot=False)
    dense = 12 * 2 * 9 + 16 * 12 * 9 + 64 * 4
    for run, expected in ((None, dense - 16 * 6 * 9), (trained, dense)):
        _, found = setting(run=run, model=copy.deepcopy(model), budget="nonzeros<=50%")
        assert found.repair.values(everything(found.layout)[None])["nonzeros"] == expected


def fresh() -> nn.Sequential:
    """Biases of zero and statistics of a net that nobody has trained."""
    layers = [nn.Conv2d(2, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("search", [{}, {"search_share": 0}])
def test_a_file_grows_in_training_and_still_fits(search):
    result = compressed(
        seeded(fresh), "size<=80%", train=True, epochs=2, search={"states": 4} | search
    )
    [row] = result.certificate.rows
    assert row.holds
    assert row.reached > 0.9 * row.maximum


def sparse(share):
    """Zeros among its weights, which a file may store as positions and values."""
    model = conv_net()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight[torch.rand_like(part.weight) < share] = 0
    return model


def partly_dead():
    """Channels that the finished file will not hold, whatever a search does."""
    model = conv_net()
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        convolutions[1].weight[:, :4] = 0
    return model


@pytest.mark.parametrize("model", [lambda: sparse(0.3), lambda: sparse(0.6), partly_dead])
def test_a_size_is_met_by_a_model_that_holds_zeros_already(model):
    torch.manual_seed(0)
    [row] = compressed(model(), "size<=50%").certificate.rows
    assert row.holds


@pytest.mark.slow
def test_a_result_that_is_compressed_further_is_not_cut_too_far():
    first = compressed(seeded(fresh), "size<=80%")  # whose biases are not zero afterwards
    assert first.certificate.holds
    [row] = compressed(first, "size<=60%").certificate.rows
    assert row.holds
    assert row.reached > 0.95 * row.maximum


@pytest.mark.parametrize(
    ("labels", "share", "taken"),
    [
        ([0, 1, 2, 3] * 16, 0.5, 32),
        ([0] * 32 + [2] * 32, 0.5, [*range(16), *range(32, 48)]),  # of each as many
        ([0] * 60 + [2] * 4, 0.5, [*range(28), *range(60, 64)]),  # as far as there are
        ([0, 1] * 32, 0.51, 33),  # rounded up
        ([0, 1] * 32, 0.01, 16),  # so many at least
        ([0] * 16 + [1] * 48, 0.01, [*range(8), *range(16, 24)]),
        ([0, 1], 0.01, 2),  # there are no more
        ([1, 1, 1, 1], 0.5, None),
        ([3], 1.0, None),
    ],
)
def test_the_first_samples_of_every_class(labels, share, taken):
    x = torch.arange(len(labels)).float()[:, None]
    batch = Batch(as_call(nn.Linear(1, 1), x), torch.tensor(labels))
    found = scored_rows(batch, share, classes=True)
    if taken is None:
        assert found is None
        assert scored_rows(batch, share, classes=False) is not None
    else:
        rows = list(range(taken)) if isinstance(taken, int) else taken
        assert torch.equal(found.call.args[0], x[rows])
        assert found.targets.tolist() == [labels[row] for row in rows]
        first = scored_rows(batch, share, classes=False)
        assert torch.equal(first.call.args[0], x[: len(rows)])


def test_targets_that_are_no_classes_are_no_reason_to_skip():
    x = torch.zeros(40, 1)
    for targets in (torch.zeros(40), torch.zeros(40, 3, dtype=torch.int64), ["a"] * 40, None):
        batch = Batch(as_call(nn.Linear(1, 1), x), targets)
        assert scored_rows(batch, 0.5, classes=True).call.batch_size == 20
    assert scored_rows(None, 0.5, classes=True) is None


def test_it_keeps_the_least_that_is_asked_for():
    _, found = setting(Ising(max_removed=0.5))
    assert [group.minimum for group in found.groups.free] == [6, 8]
    rates = found.repair.keep_rates()
    assert np.all(rates.numpy() >= 0.5)
