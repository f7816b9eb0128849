"""The models of the papers: their sizes, and that every one of them can be compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bench.zoo
from bench.zoo.cifar_resnet import PadShortcut
from bench.zoo.data_root import data_root
from bench.zoo.mlperftiny_resnet8 import _pad_as_tensorflow
from bench.zoo.shufflenet import ChannelShuffle
from energy_model.errors import ArgumentError
from passes.inputs import as_call
from passes.tracing.trace import trace
from transform import analyze

SHAPES = {
    "digits_cnn": (1, 8, 8),
    "lenet5": (1, 32, 32),
    "lenet5_caffe": (1, 28, 28),
    "lenet_300_100": (1, 28, 28),
    "lenet_300_100_bn": (1, 28, 28),
    "resnet8_gray": (1, 28, 28),
    "resnet18_gray": (1, 32, 32),
}
# Parameters at 10 classes, and the width of the last layer's input.
PARAMETERS = {
    "lenet5": (61_706, 84),
    "lenet5_caffe": (431_080, 500),
    "lenet_300_100": (266_610, 100),
    "lenet_300_100_bn": (267_020, 100),
    "mlperftiny_resnet8": (78_186, 64),
    "resnet8_gray": (75_002, 64),
    "resnet18_gray": (11_172_810, 512),
    "resnet20": (269_722, 64),
    "resnet32": (464_154, 64),
    "resnet44": (658_586, 64),
    "resnet56": (853_018, 64),
    "resnet18": (11_173_962, 512),
    "resnet34": (21_282_122, 512),
    "shufflenet": (987_870, 800),
    "vgg19": (20_040_522, 512),
    "wrn_28_2": (1_467_610, 128),
}
# The totals that the papers print for 100 classes.
AT_100_CLASSES = {
    "vgg19": 20_086_692,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "shufflenet": 1_059_960,
}
NOT_MODELS = {"digits_batches", "train_digits"}
CALLABLES = sorted(
    name
    for name in bench.zoo.__all__
    if not isinstance(getattr(bench.zoo, name), type) and name not in NOT_MODELS
)
# 36 million parameters: built and counted, but not run.
LARGE = {"wrn_28_10"}


def make(name, **options):
    return getattr(bench.zoo, name)(**options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_papers(name):
    at_10, features = PARAMETERS[name]
    assert count(make(name)) == at_10
    # One class more is one row of the last layer: bias, or the three values of a normalised logit.
    per_class = features + (2 if name == "lenet_300_100_bn" else 1)
    at_100 = AT_100_CLASSES.get(name, at_10 + 90 * per_class)
    assert count(make(name, num_classes=100)) == at_100 == at_10 + 90 * per_class


@pytest.mark.parametrize(
    ("width", "total"),
    [(0.75, 209_130), (0.98, 356_376), (1.15, 491_845), (1.33, 652_093), (1.47, 795_477)],
)
def test_thin_wide_resnets_have_the_sizes_of_the_dense_baselines(width, total):
    assert count(bench.zoo.wrn(28, width)) == total


def test_the_wide_resnet_of_width_10_has_36_million_parameters():
    with torch.device("meta"):
        assert round(count(bench.zoo.wrn_28_10()) / 1e6, 1) == 36.5


@pytest.mark.parametrize(("depth", "width"), [(27, 2), (4, 2), (28, 0), (28, -1)])
def test_there_is_no_wide_resnet_of_every_depth(depth, width):
    with pytest.raises(ArgumentError, match=r"6 n \+ 4"):
        bench.zoo.wrn(depth, width)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", [name for name in CALLABLES if name not in LARGE])
def test_every_model_traces_and_is_costed(name):
    torch.manual_seed(0)
    model = make(name, num_classes=7).eval()
    example = torch.randn(2, *SHAPES.get(name, (3, 32, 32)))
    rows = analyze(model, example).rows
    weighted = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert len(rows) == weighted
    assert all(row.macs > 0 for row in rows)
    graph = trace(model, as_call(model, example))
    assert graph.module is not None
    assert graph.leaves == ()
    other_batch = torch.randn(3, *example.shape[1:])
    with torch.no_grad():
        assert torch.equal(graph.module(other_batch), model(other_batch))
        assert model(other_batch).shape == (3, 7)


def test_every_model_is_trainable():
    for name in ("resnet20", "wrn_16_1", "shufflenet", "mlperftiny_resnet8", "lenet_300_100_bn"):
        model = make(name)
        model(torch.randn(2, *SHAPES.get(name, (3, 32, 32)))).sum().backward()
        assert all(p.grad is not None for p in model.parameters()), name


def test_the_shortcut_without_parameters_thins_and_pads():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    out = PadShortcut(1)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not out[:, [0, 3]].any()


def test_the_shuffle_interleaves_the_groups():
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert ChannelShuffle(2)(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert ChannelShuffle(1)(channels).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_tensorflow_pads_right_and_below():
    padded = _pad_as_tensorflow(torch.ones(1, 1, 2, 2))
    assert padded[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_wide_blocks_normalise_before_both_branches():
    # With the first normalisation silenced nothing may pass a block whose width changes.
    block = bench.zoo.wrn_16_2().stage1[0].eval()
    nn.init.zeros_(block.bn1.weight)
    nn.init.zeros_(block.bn2.weight)
    assert not block(torch.randn(1, 16, 8, 8)).any()
    same = bench.zoo.wrn_16_2().stage1[1].eval()
    nn.init.zeros_(same.conv2.weight)
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(same(x), x)


def test_the_convolutions_of_a_wide_resnet_start_by_fan_out():
    torch.manual_seed(0)
    weight = bench.zoo.wrn_28_2().stage3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


@pytest.mark.spread(2)
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "cifar10_resnet20.pt"),
        ("resnet20", "cifar10_resnet20_jpeg.pt"),
        ("resnet32", "cifar10_resnet32.pt"),
        ("resnet44", "cifar10_resnet44.pt"),
        ("resnet56", "cifar10_resnet56.pt"),
        ("mlperftiny_resnet8", "cifar10_mlperftiny_resnet8.pt"),
    ],
)
def test_trained_weights_load_strictly(name, file):
    path = data_root() / "weights" / file
    if not path.exists():
        pytest.skip(f"the trained weights are not at {path}: set TRANSFORM_DATA to the data root")
    make(name).load_state_dict(torch.load(path, weights_only=True), strict=True)
