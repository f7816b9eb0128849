"""LeNet-5 in the shape of Caffe's example, as in the joint pruning and quantization experiments.

Yang, Gui, Zhu, Liu, "Automatic Neural Network Compression by Sparsity-Quantization Joint Learning",
CVPR 2020. The parameter names are those of the authors' trained weights.
"""

from __future__ import annotations

import torch
from torch import nn


class LeNet5Caffe(nn.Module):
    """Convolutions of 20 and 50 channels, linear layers of 500 and `num_classes`.

    There is no ReLU after the convolutions, only after the first linear layer. Input
    `(N, 1, 28, 28)`, output `(N, num_classes)` logits; 431,080 parameters for 10 classes.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, 1, 28, 28)`."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def lenet5_caffe(num_classes: int = 10) -> LeNet5Caffe:
    """A LeNet-5 in Caffe's shape, initialised by torch's global generator."""
    return LeNet5Caffe(num_classes)
