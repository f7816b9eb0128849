"""ResNet-18 and ResNet-34 for 32 x 32 images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, with a 3 x 3 stem
and no max-pooling, as in Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural
Architecture Compression", ICLR 2019. Those with 16, 32 and 64 channels are in `cifar_resnet`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and the shortcut around them.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ from the input's, or the stride is
            not 1, the shortcut is a 1 x 1 convolution with batch normalisation.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A 3 x 3 stem, four stages of 64 to 512 channels, global mean and a linear layer.

    Input `(N, in_channels, 32, 32)`, output `(N, num_classes)` logits.

    Args:
        blocks: Blocks in each of the four stages.
        num_classes: Number of classes.
        in_channels: Channels of the images.
    """

    def __init__(
        self, blocks: tuple[int, int, int, int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks[0], stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks[1], stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks[2], stride=2)
        self.layer4 = _stage(_WIDTHS[2], _WIDTHS[3], blocks[3], stride=2)
        self.fc = nn.Linear(_WIDTHS[3], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, in_channels, 32, 32)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: torch.Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnet18(num_classes: int = 10) -> ResNet:
    """ResNet-18: 11,173,962 parameters for 10 classes, initialised by torch's global generator."""
    return ResNet((2, 2, 2, 2), num_classes)


def resnet18_gray(num_classes: int = 10) -> ResNet:
    """ResNet-18 for gray images, 11,172,810 parameters, initialised as `resnet18`."""
    return ResNet((2, 2, 2, 2), num_classes, in_channels=1)


def resnet34(num_classes: int = 10) -> ResNet:
    """ResNet-34: 21,282,122 parameters for 10 classes, initialised by torch's global generator."""
    return ResNet((3, 4, 6, 3), num_classes)
