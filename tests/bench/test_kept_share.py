"""The kept share by the authors' counting, against counts by hand."""

from __future__ import annotations

import pytest
from torch import nn

import transform
from bench.kept_share import kept_share
from bench.zoo import digits_batches, digits_cnn
from energy_model.errors import PreconditionError


def network(first=4, second=6):
    return nn.Sequential(
        nn.Conv2d(3, first, 3, bias=False),
        nn.BatchNorm2d(first),
        nn.Conv2d(first, second, 1),
        nn.Flatten(),
        nn.Linear(second, 10),
    )


def test_only_output_filters_count():
    # 108 + 8 parameters by the first convolution's filters, 24 + 6 by the second's, 60 by the
    # inputs of the linear layer, and its 10 biases as a whole.
    whole = 108 + 8 + 30 + 60 + 10
    assert kept_share(network(), network()) == 1
    half = kept_share(network(), network(first=2))
    assert half == pytest.approx((116 / 2 + 30 + 60 + 10) / whole)
    both = kept_share(network(), network(first=1, second=3))
    assert both == pytest.approx((116 / 4 + 30 / 2 + 60 / 2 + 10) / whole)


def test_it_is_more_than_what_is_physically_left():
    small = network(first=2, second=3)
    left = sum(p.numel() for p in small.parameters()) / sum(
        p.numel() for p in network().parameters()
    )
    assert left < kept_share(network(), small)


def test_a_layer_that_is_gone_keeps_nothing():
    class Branch(nn.Module):
        def __init__(self, *, whole=True):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1, bias=False)
            if whole:
                self.branch = nn.Conv2d(4, 4, 3, bias=False)
                self.head = nn.Linear(4, 2)

    assert kept_share(Branch(), Branch(whole=False)) == pytest.approx(12 / (12 + 144 + 8 + 2))


@pytest.mark.parametrize(
    ("original", "result", "words"),
    [
        (nn.Sequential(nn.LayerNorm(4)), nn.Sequential(nn.LayerNorm(4)), "LayerNorm has"),
        (nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(5, 2)), "has 5 channels"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()), "no parameters"),
        (nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.ReLU()), "ReLU has"),
    ],
)
def test_what_cannot_be_counted_is_refused(original, result, words):
    with pytest.raises(PreconditionError, match=words):
        kept_share(original, result)


def test_a_compressed_network_counts_its_kept_filters():
    model = digits_cnn()
    result = transform.compress(
        model, "macs<=50%", digits_batches()[0], method="l2", train=False, progress="none"
    )
    widths = {
        path: (layer.weight.shape, result.model.get_submodule(path).weight.shape)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    total = kept = 0.0
    for path, (before, after) in widths.items():
        layer = model.get_submodule(path)
        weights, biases = layer.weight.numel(), 0 if layer.bias is None else layer.bias.numel()
        linear = isinstance(layer, nn.Linear)
        share = after[1] / before[1] if linear else after[0] / before[0]
        total += weights + biases
        kept += share * weights + (1 if linear else share) * biases
    for path, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            left = result.model.get_submodule(path)
            total, kept = total + 2 * layer.num_features, kept + 2 * left.num_features
    assert kept_share(model, result.model) == pytest.approx(kept / total)
    assert kept < total
