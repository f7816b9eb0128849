"""Kernel divergence: against torch.distributions, by hand, and where weights tell nothing."""

from __future__ import annotations

import pytest
import torch
from spin_cases import ResidualNet, built, image, seeded
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.redundancy import gaussian_divergence, group_divergence, kernel_divergence


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def by_definition(samples, shrinkage=0.1):
    """K of units with several samples each, pair by pair, with torch's own Gaussians."""
    count, _, taps = samples.shape
    covariances = torch.stack(
        [torch.cov(unit.T, correction=1).reshape(taps, taps) for unit in samples]
    )
    variances = covariances.diagonal(dim1=1, dim2=2).mean(1)
    same = (variances + 1e-4 * variances.mean())[:, None, None] * torch.eye(taps)
    shrunk = (1 - shrinkage) * covariances + shrinkage * same
    units = [MultivariateNormal(s.mean(0), c) for s, c in zip(samples, shrunk, strict=True)]
    pairs = torch.stack([torch.stack([kl_divergence(a, b) for b in units]) for a in units])
    pairs = (pairs + pairs.T) / 2
    median = pairs[~torch.eye(count, dtype=torch.bool)].median()
    return 1 - torch.exp(-pairs / median)


def test_scalar_gaussians_by_hand():
    found = gaussian_divergence(column(0, 1), column(1, 2)[:, :, None])
    assert found == pytest.approx(torch.tensor([[0, 0.34657], [0.65343, 0]]).double(), abs=1e-5)


def test_the_divergence_is_that_of_torch_on_random_gaussians():
    means, roots = normal(6, 9), normal(6, 9, 9, seed=1)
    covariances = roots @ roots.mT + 0.1 * torch.eye(9)
    units = [MultivariateNormal(m, c) for m, c in zip(means, covariances, strict=True)]
    expected = torch.stack([torch.stack([kl_divergence(a, b) for b in units]) for a in units])
    assert torch.allclose(gaussian_divergence(means, covariances), expected, rtol=1e-5, atol=1e-5)


def test_variances_stand_for_diagonal_covariances(monkeypatch):
    means, variances = normal(5, 4), normal(5, 4, seed=1).abs() + 0.1
    expected = gaussian_divergence(means, torch.diag_embed(variances))
    assert torch.allclose(gaussian_divergence(means, variances), expected)
    monkeypatch.setattr("passes.ising.redundancy._CHUNK", 1)  # one row after another
    assert torch.allclose(gaussian_divergence(means, variances), expected)


@pytest.mark.parametrize("covariances", [torch.zeros(2, 1, 1), torch.zeros(2, 1)])
def test_a_covariance_that_is_not_positive_definite_is_refused(covariances):
    with pytest.raises(PreconditionError, match="positive definite"):
        gaussian_divergence(column(0, 1), covariances.double())


@pytest.mark.parametrize("shape", [(7, 20, 3, 3), (7, 20, 1, 1), (7, 20), (7, 4, 3, 3)])
def test_it_is_the_definition(shape):
    weight = normal(*shape)
    found = kernel_divergence(weight)
    assert torch.allclose(found, by_definition(weight.reshape(7, shape[1], -1)), atol=1e-9)


@pytest.mark.parametrize("squash", ["median", "max"])
@pytest.mark.parametrize(
    "shape", [(8, 6, 3, 3), (8, 1, 3, 3), (8, 6), (8, 1), (8, 2, 12, 12), (1, 3, 3, 3)]
)
def test_it_is_a_normalised_distance_at_any_scale(shape, squash):
    weight = normal(*shape)
    found = kernel_divergence(weight, squash=squash)
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    apart = found[~torch.eye(shape[0], dtype=torch.bool)]
    assert (apart > 0).all()
    assert squash != "max" or shape[0] == 1 or float(found.max()) == 1
    assert torch.allclose(kernel_divergence(weight * 1e-6, squash=squash), found)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 1, 3, 3), (6, 9), (6, 2, 12, 12)])
def test_equal_kernels_are_at_distance_zero_exactly(shape):
    weight = normal(*shape)
    weight[4] = weight[1]
    found = kernel_divergence(weight)
    assert found[1, 4] == 0
    assert int((found == 0).sum()) == 6 + 2


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_layer_of_one_kernel_has_no_distances(value):
    assert (kernel_divergence(torch.full((5, 4, 3, 3), value)) == 0).all()


def test_units_of_zeros_are_alike_and_finite():
    weight = normal(12, 5, 3, 3)
    weight[2:4] = 0
    found = kernel_divergence(weight)
    assert found.isfinite().all()
    assert found[2, 3] == 0
    assert (found[2, [0, 1, 4, 11]] > 0.9).all()


def test_where_most_kernels_are_the_same_the_mean_takes_the_medians_place():
    weight = normal(1, 5, 3, 3).repeat(6, 1, 1, 1)
    weight[0] = normal(5, 3, 3, seed=1)
    found = kernel_divergence(weight)
    assert (found[1:, 1:] == 0).all()
    assert (found[0, 1:] > 0.5).all()


def test_a_unit_of_several_channels_takes_all_their_kernels():
    weight = normal(8, 10, 3, 3)
    units = torch.tensor([0, 1, 2, -1, 2, 1, 0, -1])
    merged = torch.stack([torch.cat([weight[units == unit]]).reshape(20, 9) for unit in range(3)])
    assert torch.allclose(kernel_divergence(weight, units), by_definition(merged), atol=1e-9)


def test_a_single_kernel_takes_the_variance_of_the_layer():
    weight = column(0.0, 1.0, 3.0)
    variance = float(weight.var(correction=0))
    squares = torch.tensor([[0, 1, 9], [1, 0, 4], [9, 4, 0]]).double() / (2 * variance)
    assert torch.allclose(kernel_divergence(weight, squash="max"), squares / squares.max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shrinkage": 0.0}, "not above 0"),
        ({"shrinkage": 1.1}, "not above 0"),
        ({"shrinkage": float("nan")}, "not above 0"),
        ({"squash": "mean"}, "none of"),
        ({"units": torch.tensor([0, 1])}, "each of 3 channels"),
        ({"units": torch.tensor([0, 2, 2])}, "each unit a channel"),
    ],
)
def test_malformed_arguments_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        kernel_divergence(normal(3, 4), **options)


def test_a_vector_is_no_weight():
    with pytest.raises(ArgumentError, match="expected"):
        kernel_divergence(normal(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    graph, groups, _ = built(ResidualNet, image())
    with torch.no_grad():
        graph.module.wide.weight[3, 0, 1, 1] = value
    with pytest.raises(PreconditionError, match=r"wide\.weight: holds NaN"):
        group_divergence(graph, groups.by_name["wide"])


def test_a_stream_takes_the_mean_over_the_layers_that_add_into_it():
    graph, groups, _ = built(ResidualNet, image())
    model = graph.module
    layers = [model.stem.weight, model.back.weight, model.loop.weight]
    expected = torch.stack([kernel_divergence(weight) for weight in layers]).mean(0)
    assert torch.allclose(group_divergence(graph, groups.by_name["stem"]), expected)


def test_a_pair_of_a_stream_is_redundant_only_if_all_its_layers_say_so():
    graph, groups, _ = built(ResidualNet, image())
    model, stream = graph.module, groups.by_name["stem"]
    with torch.no_grad():
        for layer in (model.stem, model.back):
            layer.weight[5] = layer.weight[2]
        assert group_divergence(graph, stream)[2, 5] > 0
        model.loop.weight[5] = model.loop.weight[2]
    assert group_divergence(graph, stream)[2, 5] == 0


class Shapes(nn.Module):
    """A transposed convolution, a grouped one, and a product with a parameter."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 6, 2, stride=2)
        self.deep = nn.Conv2d(6, 6, 3, groups=6)
        self.grouped = nn.Conv2d(6, 8, 1, groups=2)
        self.matrix = nn.Parameter(torch.randn(8, 7))
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.grouped(torch.relu(self.deep(self.up(x)))).mean((2, 3))
        return self.head(torch.relu(x @ self.matrix))


def test_channels_are_where_the_groups_say():
    graph, groups, _ = built(Shapes, image())
    model = graph.module
    coupled = torch.arange(4).repeat(2)
    expected = {
        "grouped": kernel_divergence(model.grouped.weight, coupled),
        "matrix": kernel_divergence(model.matrix.T),
    }
    for name, value in expected.items():
        assert torch.allclose(group_divergence(graph, groups.by_name[name]), value), name
    up = groups.by_name["up"]  # the groups of the next layer tie its channels in pairs
    assert up.units == 3
    pairs = kernel_divergence(model.up.weight.transpose(0, 1), torch.arange(3).repeat(2))
    assert torch.allclose(group_divergence(graph, up), pairs)


def test_a_group_without_weights_of_its_own_is_uniform():
    graph, groups, _ = built(ResidualNet, image())
    group = groups.by_name["wide"]
    graph.module.wide.weight = nn.Parameter(torch.zeros(16))  # nothing but a vector
    assert torch.equal(group_divergence(graph, group), torch.zeros(16, 16).double())
