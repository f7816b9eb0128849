"""ShuffleNet with two groups for 32 x 32 images.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018. The stem and the branch beside the blocks of stride 2 are those of Cao, Wang,
Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR 2019; with
them the number of parameters is theirs, at 10 and at 100 classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_GROUPS = 2
_STEM = 24
_STAGES = ((200, 4), (400, 8), (800, 4))  # output channels, blocks


class ChannelShuffle(nn.Module):
    """Interleaves the channels of the groups: `(N, C, H, W)` to the same shape.

    Args:
        groups: Number of groups; it divides the channels.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channel `g * (C / groups) + i` goes to `i * groups + g`."""
        split = torch.unflatten(x, 1, (self.groups, -1))
        return torch.flatten(split.transpose(1, 2), 1, 2)


class ShuffleBlock(nn.Module):
    """Grouped 1 x 1, shuffle, depthwise 3 x 3, grouped 1 x 1, and what stands beside them.

    With stride 1 the input is added. With stride 2 it goes through a grouped 1 x 1 convolution and
    average pooling, and its channels are put behind the others.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        branch = out_channels - in_channels if stride == 2 else out_channels
        middle = branch // 4
        # The stem is too narrow for groups (section 3.2 of the ShuffleNet paper).
        groups = 1 if in_channels == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.shuffle = ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut: nn.Module | None = None
        if stride == 2:
            convolution = nn.Conv2d(in_channels, in_channels, 1, groups=_GROUPS, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.AvgPool2d(3, stride=2, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        out = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.shortcut is None:
            return F.relu(out + x)
        return F.relu(torch.cat([out, self.shortcut(x)], 1))


class ShuffleNet(nn.Module):
    """A 1 x 1 stem, three stages that each halve the image, global mean and a linear layer.

    Input `(N, 3, 32, 32)`, output `(N, num_classes)` logits; 987,870 parameters for 10 classes.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        blocks: list[nn.Module] = []
        channels = _STEM
        for out_channels, count in _STAGES:
            for index in range(count):
                blocks.append(ShuffleBlock(channels, out_channels, 1 if index else 2))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, 32, 32)`."""
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: torch.Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
        return logits


def shufflenet(num_classes: int = 10) -> ShuffleNet:
    """ShuffleNet for 32 x 32 images, initialised by torch's global generator."""
    return ShuffleNet(num_classes)
