"""VGG-19 with batch normalisation for 32 x 32 images.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, configuration E; one linear layer instead of three, as in Cao, Wang, Kitani, "Learnable
Embedding Space for Efficient Neural Architecture Compression", ICLR 2019.
"""

from __future__ import annotations

import torch
from torch import nn

# Output channels of the convolutions between two poolings.
_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(nn.Module):
    """Sixteen 3 x 3 convolutions with bias, normalisation and ReLU, five poolings, a linear layer.

    Input `(N, 3, 32, 32)`, output `(N, num_classes)` logits; 20,040,522 parameters for 10 classes.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in _STAGES:
            for channels in stage:
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, 32, 32)`."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg19(num_classes: int = 10) -> VGG:
    """VGG-19 for 32 x 32 images, initialised by torch's global generator."""
    return VGG(num_classes)
