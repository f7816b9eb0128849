"""The residual networks for CIFAR: ResNet-20, 32, 44 and 56, and a small one for gray images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with
the shortcut without parameters (option A). The parameter names are those of the widely used trained
weights of the akamaster/pytorch_resnet_cifar10 repository.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides.

    Maps `(N, C, H, W)` to `(N, C + 2 * pad, ceil(H / 2), ceil(W / 2))`.

    Args:
        pad: Zero channels on either side.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The thinned and padded input."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and the shortcut around them.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; the shortcut pads when they differ.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        padding = (out_channels - in_channels) // 2
        self.shortcut: nn.Module = PadShortcut(padding) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3 x 3 stem, three stages of 16, 32 and 64 channels, global mean and a linear layer.

    Input `(N, in_channels, H, W)`, output `(N, num_classes)` logits. The depth is `6 * blocks + 2`.

    Args:
        blocks: Blocks in each stage.
        num_classes: Number of classes.
        in_channels: Channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, stride=2)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, in_channels, H, W)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: torch.Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20: 269,722 parameters for 10 classes, initialised by torch's global generator."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32: 464,154 parameters for 10 classes, initialised by torch's global generator."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """ResNet-44: 658,586 parameters for 10 classes, initialised by torch's global generator."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56: 853,018 parameters for 10 classes, initialised by torch's global generator."""
    return CifarResNet(9, num_classes)


def resnet8_gray(num_classes: int = 10) -> CifarResNet:
    """ResNet-8 for gray images: 75,002 parameters, initialised by torch's global generator."""
    return CifarResNet(1, num_classes, in_channels=1)
