"""Norms as one short factor and one short shift per channel: same function, fewer numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.joint.fit import fit_codebook
from passes.rewrite.freeze import freeze
from passes.rewrite.plain_norms import (
    ChannelAffine,
    factors,
    make_plain,
    norms_of,
    round_norm,
)
from passes.tracing.trace import trace

KINDS = {
    "rows": (nn.BatchNorm1d, (9, 4)),
    "1d": (nn.BatchNorm1d, (9, 4, 4)),
    "2d": (nn.BatchNorm2d, (9, 4, 3, 4)),
    "3d": (nn.BatchNorm3d, (9, 4, 4, 2, 4)),
}


def random_norm(kind=nn.BatchNorm2d, seed=0, channels=4, **options):
    """A norm with statistics that a trained model might have, in evaluation mode."""
    norm, generator = kind(channels, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(torch.randn(channels, generator=generator))
            norm.bias.copy_(torch.randn(channels, generator=generator))
        if norm.running_mean is not None:
            norm.running_mean.copy_(torch.randn(channels, generator=generator))
            norm.running_var.copy_(torch.rand(channels, generator=generator) * 3 + 0.01)
    return norm.eval()


def is_short(values, bits):
    mantissa = torch.frexp(values.detach().double())[0] * 2**bits
    return torch.equal(mantissa, mantissa.round())


def inputs(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made_plain(norm):
    """What takes the place of a norm."""
    holder = nn.Sequential(copy.deepcopy(norm))
    make_plain(holder)
    assert isinstance(holder[0], ChannelAffine)
    assert not holder[0].training
    return holder[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_plain_norm_computes_the_same(kind, seed):
    make, shape = KINDS[kind]
    norm, x = random_norm(make, seed), inputs(shape)
    plain = made_plain(norm)
    expected = norm.double()(x.double())
    assert (plain(x).double() - expected).abs().max() <= 1e-6 * (1 + expected.abs().max())
    assert plain.factor.numel() == plain.shift.numel() == 4
    assert [name for name, _ in plain.named_parameters()] == []


def test_a_norm_with_several_names_is_replaced_everywhere():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = random_norm()
            self.again, self.inner = self.first, nn.Sequential(self.first)

        def forward(self, x):
            return self.inner(self.again(self.first(x)))

    model, x = Shared().eval(), inputs((2, 4, 3, 3))
    expected = model(x)
    make_plain(model)
    assert model.first is model.again is model.inner[0]
    assert isinstance(model.first, ChannelAffine)
    assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 5, 9, 12])
@pytest.mark.parametrize("seed", range(4))
def test_rounded_factors_are_exactly_short_once_it_is_plain(bits, seed):
    norm = random_norm(seed=seed, channels=64)
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    exact = factors(norm)
    round_norm(norm, bits)
    # The model's own statistics stay, so that it can be trained further.
    assert torch.equal(norm.running_mean, statistics[0])
    assert torch.equal(norm.running_var, statistics[1])
    for rounded, before in zip(factors(norm), exact, strict=True):
        assert (rounded - before).abs().max() <= 2.0**-bits * 2 * (1 + before.abs().max())
    x = inputs((5, 64, 2, 2))
    expected = norm(x)
    plain = made_plain(norm)
    assert is_short(plain.factor, bits)
    assert is_short(plain.shift, bits)
    assert torch.allclose(plain(x), expected, rtol=1e-5, atol=1e-5)
    # Without rounding they are not: the check above can fail.
    assert not is_short(made_plain(random_norm(seed=seed, channels=64)).factor, bits)


def test_rounding_twice_changes_next_to_nothing():
    norm = random_norm(channels=32)
    round_norm(norm, 7)
    first = factors(norm)
    round_norm(norm, 7)
    for a, b in zip(first, factors(norm), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


class Net(nn.Module):
    """A norm after a layer, one before it, one without factors and one without statistics."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.after = random_norm(seed=1)
        self.bare = random_norm(seed=2, affine=False)
        self.batchwise = nn.BatchNorm2d(4, track_running_stats=False)
        self.layer = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.batchwise(self.bare(self.after(self.conv(x))))
        return self.head(self.layer(x.mean((2, 3))))


X = inputs((3, 2, 5, 5))


def net_graph() -> ModelGraph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
    return trace(model, as_call(model, X))


def test_norms_without_factors_or_statistics_are_left_alone():
    model = net_graph().module.double()
    assert norms_of(model) == [model.after]
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("after")}
    expected = model(X.double())
    make_plain(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert torch.allclose(model(X.double()), expected, atol=1e-4)


def test_norms_of_frozen_models_are_plain_where_weights_have_codebooks():
    graph = net_graph()
    # Without a codebook it is folded into its layer.
    assert not any(isinstance(part, ChannelAffine) for part in freeze(graph).module.modules())
    site = graph.by_name["conv"]
    book = fit_codebook(graph.weight(site), 8)
    graph.weight(site).copy_(book.nearest(graph.weight(site)))
    graph.codebooks["conv"] = book
    round_norm(graph.module.after, 6)
    expected = graph.module(X)
    state = copy.deepcopy(graph.module.state_dict())
    frozen = freeze(graph).module
    [norm] = [part for part in frozen.modules() if isinstance(part, ChannelAffine)]
    assert norms_of(frozen) == []
    assert is_short(norm.factor, 6)
    assert is_short(norm.shift, 6)
    with torch.no_grad():
        assert torch.allclose(frozen(X), expected, atol=1e-3)
    # The model itself is not touched, and trains on with its own statistics.
    now = graph.module.state_dict()
    assert all(torch.equal(now[k], v) for k, v in state.items())
    assert isinstance(graph.module.after, nn.BatchNorm2d)
    graph.module.train()(X)
    assert not torch.equal(graph.module.after.running_mean, state["after.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_stay_what_they_are(dtype):
    norm = random_norm().to(dtype)
    x = inputs((5, 4, 2, 2)).to(dtype)
    expected = norm(x)
    round_norm(norm, 10)
    plain = made_plain(norm)
    assert plain.factor.dtype == plain.shift.dtype == dtype
    assert torch.allclose(plain(x), expected, rtol=1e-2, atol=1e-2)


def test_channels_that_are_off_or_constant_stay_finite():
    norm = random_norm()
    with torch.no_grad():
        norm.weight[0] = 0.0
        norm.running_var[1] = 0.0
        norm.bias[2] = 0.0
        norm.running_mean[3] = 1e6
    x = inputs((5, 4, 2, 2))
    round_norm(norm, 9)
    plain = made_plain(norm)
    assert plain.factor.flatten()[0] == 0
    assert bool(torch.isfinite(plain(x)).all())
