"""Statistics of batch norms: exact averages, in order, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from reconstruct_nets import batches, filled, graph_of, masked, outputs, residual, values
from torch import nn

from energy_model.errors import PreconditionError
from passes.inputs import Call
from passes.reconstruct.batch_norm import (
    Statistics,
    matched,
    reestimate_batch_norms,
    set_statistics,
    statistics,
)

SHAPE = (4, 2, 8, 8)


def test_statistics_are_exact_over_batches_of_any_size() -> None:
    x = values(10, 3, 4, 5) + 1000
    found = statistics([x[:1], x[1:7], x[7:]], "norm")
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, rows.mean(1))
    torch.testing.assert_close(found.variance, rows.var(1, correction=0), rtol=1e-9, atol=0)
    assert found.count == 200
    with pytest.raises(PreconditionError, match="norm: its inputs are not finite"):
        statistics([x, x * torch.nan], "norm")


def test_every_norm_sees_its_inputs_as_they_are_with_the_norms_before_it_renewed() -> None:
    model = masked(residual())
    graph, given = graph_of(model, *SHAPE), batches(*SHAPE)
    (told,) = reestimate_batch_norms(graph, given)
    assert told.what == "batch norms estimated anew"
    x = torch.cat([call.args[0] for call in given(3)])
    with torch.no_grad():
        first = model.stem(x)
        second = model.pair(model.deep(torch.relu(model.bn(first))))
    for norm, value in ((model.bn, first), (model.bn2, second)):
        rows = value.transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, rows.mean(1))
        torch.testing.assert_close(norm.running_var, rows.var(1))


def test_it_is_what_training_mode_averages_to_on_one_batch() -> None:
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=1.0)))
    reference = copy.deepcopy(model).train()
    given = batches(16, 3, count=1)
    outputs(reference, given)
    graph = graph_of(model, 16, 3)
    reestimate_batch_norms(graph, given)
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean)
    torch.testing.assert_close(model[1].running_var, reference[1].running_var)


def test_nothing_else_changes() -> None:
    model = masked(residual())
    model.bn2.train()
    graph = graph_of(model, *SHAPE)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    reestimate_batch_norms(graph, batches(*SHAPE))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in (model, model.bn, model.bn2)] == [False, False, True]
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"{n}.running_{s}" for n in ("bn", "bn2") for s in ("mean", "var")}


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4, momentum=0.0)],
    ids=["without statistics", "frozen"],
)
def test_norms_without_statistics_and_frozen_ones_are_left(norm: nn.Module) -> None:
    model = filled(nn.Sequential(nn.Linear(3, 4), norm))
    before = copy.deepcopy(model.state_dict())
    assert reestimate_batch_norms(graph_of(model, 4, 3), batches(4, 3)) == []
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_one_row_has_a_mean_and_no_variance() -> None:
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    before = model[1].running_var.clone()
    reestimate_batch_norms(graph_of(model, 4, 3), batches(1, 3, count=1))
    assert torch.equal(model[1].running_var, before)
    with torch.no_grad():
        expected = model[0](next(batches(1, 3, count=1)(1)).args[0])[0]
    torch.testing.assert_close(model[1].running_mean, expected)


def test_matched_statistics_give_the_outputs_of_the_original_their_moments() -> None:
    original = filled(nn.BatchNorm1d(5))
    kept = torch.tensor([0, 2, 3])
    norm = nn.BatchNorm1d(3).double().eval()
    norm.weight.data, norm.bias.data = original.weight.data[kept], original.bias.data[kept]
    x0 = values(4000, 5)
    x = 0.5 * x0[:, kept] + values(4000, 3, seed=2) * 0.1 + 3
    wanted = statistics([x0], "norm").part(kept)
    set_statistics(norm, matched(statistics([x], "norm"), original, wanted, kept))
    with torch.no_grad():
        now, then = norm(x), original(x0)[:, kept]
    torch.testing.assert_close(now.mean(0), then.mean(0), rtol=1e-6, atol=1e-6)
    # The floor under the ratio of variances draws it to one by about that much.
    torch.testing.assert_close(now.var(0), then.var(0), rtol=0.05, atol=0)


def test_matched_statistics_of_an_unchanged_network_are_the_old_ones() -> None:
    original = filled(nn.BatchNorm1d(5))
    same = statistics([values(3, 5)], "norm")
    found = matched(same, original, same, None)
    torch.testing.assert_close(found.mean, original.running_mean)
    torch.testing.assert_close(found.variance, original.running_var)


def test_channels_that_never_vary_keep_their_variance() -> None:
    original = filled(nn.BatchNorm1d(2))
    still = Statistics(torch.ones(2).double(), torch.zeros(2).double(), 10)
    found = matched(still, original, still, None)
    torch.testing.assert_close(found.variance, original.running_var)
    gone = matched(still, original, Statistics(still.mean, still.mean * 1e4, 10), None)
    assert bool((gone.variance >= 0).all())


def test_an_opaque_model_is_told() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    graph = graph_of(Branches().double(), 4, 3)
    assert graph.graph_module is None
    (told,) = reestimate_batch_norms(graph, lambda _: iter([Call((values(4, 3),))]))
    assert "could not be traced" in told.why
