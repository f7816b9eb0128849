"""Scores of units: hand-made values, and the same ranking as Torch-Pruning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import as_call
from passes.structure.groups import channel_groups
from passes.structure.importance import (
    batch_norm_scores,
    norm_scores,
    normalized,
    random_scores,
    taylor_scores,
)
from passes.tracing.trace import trace


def conv_net(seed=0):
    """Convolutions, batch norms, a residual add, a linear layer after flatten."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.inner = nn.Conv2d(8, 12, 3, padding=1)
            self.inner_norm = nn.BatchNorm2d(12)
            self.back = nn.Conv2d(12, 8, 1)
            self.wide = nn.Conv2d(8, 16, 3, stride=2)
            self.head = nn.Linear(16 * 9, 5)

        def forward(self, x):
            x = torch.relu(self.norm(self.stem(x)))
            x = x + self.back(torch.relu(self.inner_norm(self.inner(x))))
            return self.head(torch.relu(self.wide(x)).flatten(1))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.2, 2.0)
        return model.eval()


def found(model, x):
    graph = trace(model, as_call(model, x))
    return graph, channel_groups(graph)


def two_layers():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.5]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, -4.0], [0.0, 2.0, 0.0]]))
    return model


@pytest.mark.parametrize(
    ("power", "expected"), [(1, [3 + 1, 3 + 3, 1 + 4]), (2, [5 + 1, 9 + 5, 0.5 + 16])]
)
def test_norms_by_hand(power, expected):
    graph, groups = found(two_layers(), torch.zeros(1, 2))
    scores = norm_scores(graph, groups, power)
    assert scores["0"].tolist() == expected
    assert list(scores) == ["0"]


def test_taylor_by_hand():
    model = two_layers()
    graph, groups = found(model, torch.zeros(1, 2))
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert taylor_scores(graph, groups, gradients)["0"].tolist() == [3 + 1, 3 + 3, 1 + 4]
    whole = taylor_scores(graph, groups, gradients, whole_units=True)
    assert whole["0"].tolist() == [1 + 1, 3 + 3, 1 + 4]
    assert taylor_scores(graph, groups, {})["0"].tolist() == [0, 0, 0]


def test_batch_norm_scales_and_groups_without_one():
    model = conv_net()
    graph, groups = found(model, torch.zeros(1, 3, 8, 8))
    scores = batch_norm_scores(graph, groups)
    assert set(scores) == {"stem", "inner"} < {group.name for group in groups.free}
    for name, norm in (("stem", model.norm), ("inner", model.inner_norm)):
        np.testing.assert_allclose(scores[name], norm.weight.detach().abs().numpy())


def test_tied_weights_count_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.head(torch.relu(self.one(x))) + self.head(torch.relu(self.two(x + 1)))

    model = Twice()
    graph, groups = found(model, torch.zeros(1, 4))
    expected = model.one.weight.abs().sum(1) + model.head.weight.abs().sum(0)
    [score] = norm_scores(graph, groups, 1).values()
    np.testing.assert_allclose(score, expected.detach().numpy(), rtol=1e-6)


def test_a_weight_that_is_not_finite_is_named():
    model = two_layers()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    graph, groups = found(two_layers(), torch.zeros(1, 2))
    graph.module.load_state_dict(model.state_dict())
    with pytest.raises(PreconditionError, match=r"'0'.*not finite"):
        norm_scores(graph, groups, 2)


def test_random_scores_repeat_and_differ():
    _, groups = found(conv_net(), torch.zeros(1, 3, 8, 8))
    first, same, other = (random_scores(groups, seed) for seed in (1, 1, 2))
    for name in first:
        assert (first[name] == same[name]).all()
        assert (first[name] != other[name]).any()


def test_normalized():
    scores = {"a": np.array([1.0, 3.0]), "b": np.zeros(2)}
    assert normalized(scores, "mean")["a"].tolist() == [0.5, 1.5]
    assert normalized(scores, "max")["a"].tolist() == [1 / 3, 1.0]
    assert normalized(scores, "none")["a"].tolist() == [1.0, 3.0]
    assert normalized(scores, "mean")["b"].tolist() == [0.0, 0.0]
    with pytest.raises(ArgumentError, match="'sum' is none of"):
        normalized(scores, "sum")


@pytest.mark.spread(3)
@pytest.mark.parametrize("kind", ["l1", "l2", "taylor"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_ranking_of_torch_pruning(kind, seed):
    pruning = pytest.importorskip("torch_pruning")
    model = conv_net(seed)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    graph, groups = found(model, x)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    ours = {
        "l1": lambda: norm_scores(graph, groups, 1),
        "l2": lambda: norm_scores(graph, groups, 2),
        "taylor": lambda: taylor_scores(graph, groups, gradients),
    }[kind]()
    theirs = {
        "l1": lambda: pruning.importance.GroupMagnitudeImportance(p=1, normalizer=None),
        "l2": lambda: pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        "taylor": lambda: pruning.importance.GroupTaylorImportance(normalizer=None),
    }[kind]()
    dependencies = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    for name in ("stem", "inner"):
        layer = model.get_submodule(name)
        group = dependencies.get_pruning_group(
            layer, pruning.prune_conv_out_channels, idxs=list(range(layer.out_channels))
        )
        expected = theirs(group).detach().double().numpy()
        # Its mean over members is our sum up to one factor.
        ratio = ours[name] / expected
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        assert (np.argsort(ours[name]) == np.argsort(expected)).all()
