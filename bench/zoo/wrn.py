"""Wide residual networks for 32 x 32 images.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016: pre-activation blocks, three stages of
16, 32 and 64 channels times the width. Dropout is left out, as in Mostafa and Wang, "Parameter
Efficient Training of Deep Convolutional Neural Networks by Dynamic Sparse Reparameterization",
ICML 2019, whose parameter counts these are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from energy_model.errors import ArgumentError

_WIDTHS = (16, 32, 64)


class WideBlock(nn.Module):
    """Twice batch normalisation, ReLU and a 3 x 3 convolution, and the shortcut around them.

    Where the channels change, the shortcut is a 1 x 1 convolution and starts, like the branch,
    after the first ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        active = F.relu(self.bn1(x))
        out: torch.Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3 x 3 stem of 16 channels, three stages, batch normalisation, global mean, linear layer.

    Input `(N, 3, 32, 32)`, output `(N, num_classes)` logits. Convolutions start as He et al. 2015,
    by fan-out.

    Args:
        depth: Number of layers: 6 n + 4.
        width: Factor on the stages' channels; a fraction is rounded to whole channels.
        num_classes: Number of classes.

    Raises:
        ArgumentError: The depth is not 6 n + 4, or the width leaves a stage without channels.
    """

    def __init__(self, depth: int, width: float, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        widths = [round(channels * width) for channels in _WIDTHS]
        if blocks < 1 or rest or min(widths) < 1:
            raise ArgumentError(
                f"there is no WRN-{depth}-{width:g}",
                where="wrn",
                remedy="The depth is 6 n + 4 (10, 16, 22, 28, 40, ...) and the width positive.",
            )
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.stage1 = _stage(_WIDTHS[0], widths[0], blocks, stride=1)
        self.stage2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.stage3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.bn = nn.BatchNorm2d(widths[2])
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, 32, 32)`."""
        out = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(F.relu(self.bn(out)), 1)
        logits: torch.Tensor = self.linear(torch.flatten(out, 1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride)
    rest = [WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def wrn(depth: int = 28, width: float = 2, num_classes: int = 10) -> WideResNet:
    """WRN-depth-width, initialised by torch's global generator.

    Raises:
        ArgumentError: The depth is not 6 n + 4, or the width leaves a stage without channels.
    """
    return WideResNet(depth, width, num_classes)


def wrn_16_1(num_classes: int = 10) -> WideResNet:
    """WRN-16-1: a small one, 0.17 M parameters for 10 classes."""
    return WideResNet(16, 1, num_classes)


def wrn_16_2(num_classes: int = 10) -> WideResNet:
    """WRN-16-2: 0.69 M parameters for 10 classes."""
    return WideResNet(16, 2, num_classes)


def wrn_22_2(num_classes: int = 10) -> WideResNet:
    """WRN-22-2: 1.08 M parameters for 10 classes."""
    return WideResNet(22, 2, num_classes)


def wrn_28_2(num_classes: int = 10) -> WideResNet:
    """WRN-28-2: 1,467,610 parameters for 10 classes."""
    return WideResNet(28, 2, num_classes)


def wrn_28_10(num_classes: int = 10) -> WideResNet:
    """WRN-28-10: 36.5 M parameters for 10 classes."""
    return WideResNet(28, 10, num_classes)


def wrn_40_2(num_classes: int = 10) -> WideResNet:
    """WRN-40-2: 2.2 M parameters for 10 classes."""
    return WideResNet(40, 2, num_classes)
