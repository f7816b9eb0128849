"""The largest thin network within a limit, exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import bench.zoo
from bench.thin import parameters, resnet50_width, solve_width
from energy_model.errors import ArgumentError, InfeasibleBudget
from transform import RandomChannels, compress


def lenet(width):
    return bench.zoo.lenet_300_100_bn(width=width)


def wrn(width):
    return bench.zoo.wrn(28, width)


def size(builder, width):
    with torch.device("meta"):
        return parameters(builder(width))


@pytest.mark.spread(3)
@pytest.mark.parametrize("limit", [821, 822, 823, 824, 5344, 10_000, 53_240, 267_019, 267_020])
def test_the_width_is_the_largest_of_all_that_differ(limit):
    # Widths between two neighbours of these are one network: both layers round alike.
    points = sorted({(2 * k + 1) / (2 * c) for c in (300, 100) for k in range(c + 1)})
    widths = [(a + b) / 2 for a, b in itertools.pairwise(points)]
    widths = [width for width in widths if round(100 * width) >= 1]

    def count(width):
        first, second = round(300 * width), round(100 * width)
        return 784 * first + first * second + 10 * second + 2 * (first + second + 10)

    counts = [count(width) for width in widths]
    assert counts == sorted(counts)
    found = solve_width(lenet, max(limit, counts[0]))
    assert found.count == max(n for n in counts if n <= max(limit, counts[0]))
    assert found.next_count == min(n for n in counts if n > max(limit, counts[0]))
    assert size(lenet, found.multiplier) == found.count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "count", "width"),
    [
        (161_229, 159_797, 0.65),
        pytest.param(306_384, 305_346, 0.91, marks=pytest.mark.slow),
        pytest.param(451_532, 443_109, 1.1, marks=pytest.mark.slow),
        pytest.param(596_687, 592_612, 1.27, marks=pytest.mark.slow),
        pytest.param(741_850, 741_513, 1.42, marks=pytest.mark.slow),
    ],
)
def test_thin_wide_resnets_that_are_no_larger_than_the_sparse_ones(limit, count, width):
    found = solve_width(wrn, limit)
    assert (found.count, found.multiplier) == (count, width)
    assert found.count <= limit < found.next_count
    assert size(wrn, width) == count


@pytest.mark.slow
@pytest.mark.parametrize("limit", [161_229, 306_384, 741_850])
def test_channels_that_go_before_training_leave_the_network_of_the_solved_width(limit):
    model = bench.zoo.wrn_28_2()
    result = compress(
        model,
        f"params<={limit}",
        example_inputs=torch.randn(1, 3, 32, 32),
        method=RandomChannels(scope="layer", channel_multiple=1),
        layers={"conv1": False},
        train=False,
        progress="none",
    )
    assert parameters(result.model) == solve_width(wrn, limit).count


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("width", "total"), [(1, 25_557_032), (0.54, 8_167_095), (0.46, 5_771_217)]
)
def test_thin_resnets_have_the_sizes_of_the_dense_baselines(width, total):
    assert size(resnet50_width, width) == total


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "width"), [(7_377_320, 0.52), (5_104_861, 0.42)])
def test_thin_resnets_that_are_no_larger_than_the_sparse_ones(limit, width):
    found = solve_width(resnet50_width, limit)
    assert found.multiplier == width
    assert found.count == size(resnet50_width, width) <= limit < found.next_count


def test_with_width_1_it_is_the_resnet_of_torchvision():
    from torchvision.models import resnet50

    with torch.device("meta"):
        theirs, ours = resnet50(num_classes=7), resnet50_width(1, num_classes=7)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


@pytest.mark.slow
def test_it_computes_what_the_resnet_of_torchvision_computes():
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs, ours = resnet50(num_classes=7).eval(), resnet50_width(1, num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_convolutions_start_by_fan_out():
    torch.manual_seed(0)
    weight = resnet50_width(0.125).layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_anything_can_be_counted():
    def neurons(model):
        return model[1].out_features

    found = solve_width(lenet, 42, count=neurons)
    assert (found.multiplier, found.count, found.next_count) == (0.14, 42, 43)


def test_a_limit_below_the_thinnest_network():
    thinnest = 784 * 2 + 2 + 10 + 2 * 13  # 0.005 of 300 rounds to 2, of 100 to 1
    with pytest.raises(InfeasibleBudget) as caught:
        solve_width(lenet, thinnest - 1)
    assert (caught.value.asked, caught.value.tightest) == (thinnest - 1, thinnest)
    assert solve_width(lenet, thinnest).count == thinnest


def test_networks_that_do_not_grow():
    with pytest.raises(ArgumentError, match="grow with the width"):
        solve_width(lambda width: nn.Linear(3, 3), 12)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_300_100_bn"])
def test_a_thin_lenet_is_rounded_and_runs(name):
    model = getattr(bench.zoo, name)(width=0.022).eval()
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [7, 2, 10]
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("builder", [lenet, bench.zoo.lenet_300_100, resnet50_width])
def test_widths_that_leave_nothing(builder):
    for width in (0, 0.001, -1):
        with pytest.raises(ArgumentError, match="leaves"):
            builder(width=width) if builder is not lenet else lenet(width)
