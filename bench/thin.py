"""Thin dense networks: the baseline that spends a budget of parameters on fewer channels.

Mostafa and Wang, "Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic
Sparse Reparameterization", ICML 2019, compare with thin networks that are 7 to 30 % larger than the
sparse ones. Here the width is the largest that stays within the budget.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import bench.zoo  # noqa: F401 -- makes torchvision importable on a CPU-only torch
from energy_model.errors import ArgumentError, InfeasibleBudget

_APART = 2.0**-24
_STEM, _EXPANSION, _BLOCKS = 64, 4, (3, 4, 6, 3)


@dataclass(frozen=True, slots=True)
class Width:
    """The largest network of a family within a limit.

    Attributes:
        multiplier: Its width, in as few decimals as name it.
        count: What is counted of it; at most the limit.
        next_count: The same of the next wider network; above the limit.
    """

    multiplier: float
    count: int
    next_count: int


def parameters(model: nn.Module) -> int:
    """All learnable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def solve_width(
    builder: Callable[[float], nn.Module],
    limit: int,
    *,
    count: Callable[[nn.Module], int] = parameters,
) -> Width:
    """The largest width whose count does not exceed a limit, exactly.

    Counts are steps over the width, and the bisection ends on both sides of the one step that
    crosses the limit. Steps are told apart that are 2^-24 apart: those of rounded multiples of
    channel numbers whose products are below 2^23.

    Args:
        builder: From a width multiplier to the network; raises `ArgumentError` for widths without
            one. It is called some thirty times, on torch's meta device.
        limit: Most that may be counted.
        count: What is counted of a network; it must not fall with the width.

    Raises:
        InfeasibleBudget: The smallest network is above the limit.
        ArgumentError: The limit is not reached at any width.
    """

    def counted(width: float) -> int:
        try:
            with torch.device("meta"):
                return count(builder(width))
        except ArgumentError:
            return 0  # too thin to exist

    low, high = 0.0, _above(counted, limit)
    while high - low > _APART:
        middle = (low + high) / 2
        low, high = (middle, high) if counted(middle) <= limit else (low, middle)
    found, following = counted(low), counted(high)
    if not found:
        raise InfeasibleBudget(
            f"{limit:,} are allowed, and the thinnest network has {following:,}",
            limit="params",
            asked=limit,
            tightest=following,
            remedy="Raise the limit, or take a network with fewer layers.",
        )
    return Width(_shortest(counted, low), found, following)


def _above(counted: Callable[[float], int], limit: int) -> float:
    """A width whose count is above the limit."""
    width = 1.0
    while counted(width) <= limit:
        width *= 2
        if width > 2**16:
            raise ArgumentError(
                f"even {width:g} times as wide, nothing exceeds {limit:,}",
                where="solve_width",
                remedy="Give a builder whose networks grow with the width.",
            )
    return width


def _shortest(counted: Callable[[float], int], width: float) -> float:
    """The same network's width with the fewest decimals."""
    for decimals in range(1, 16):
        scale = 10.0**decimals
        rounded = math.floor(width * scale) / scale
        if counted(rounded) == counted(width):
            return rounded
    return width


def resnet50_width(width: float, num_classes: int = 1000) -> nn.Module:
    """ResNet-50 with all channels, those of the stem too, times a width.

    Input `(N, 3, H, W)`, output `(N, num_classes)` logits; with width 1 torchvision's `resnet50`.
    Initialised by torch's global generator.

    Args:
        width: Factor on the 64 channels of the stem; the stages have 4, 8, 16 and 32 times the
            rounded number.
        num_classes: Number of classes.

    Raises:
        ArgumentError: The width leaves no channel.
    """
    channels = round(_STEM * width)
    if channels < 1:
        raise ArgumentError(
            f"the width {width:g} leaves no channel",
            where="resnet50_width",
            remedy="Take more than 0.01.",
        )
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, channels, 7, 2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, padding=1),
    }
    inputs = channels
    for number, blocks in enumerate(_BLOCKS):
        planes = channels * 2**number
        parts[f"layer{number + 1}"] = _stage(inputs, planes, blocks, stride=2 if number else 1)
        inputs = planes * _EXPANSION
    parts |= {
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(inputs, num_classes),
    }
    model = nn.Sequential(OrderedDict(parts))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import Bottleneck

    outputs = planes * _EXPANSION
    downsample = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )
    first = Bottleneck(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(Bottleneck(outputs, planes) for _ in range(blocks - 1)))
