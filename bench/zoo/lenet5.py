"""LeNet-5 on 1 x 32 x 32, as in the energy experiments of Yang, Zhu, Liu, ICLR 2019."""

from __future__ import annotations

import torch
from torch import nn


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions with 2 x 2 max-pooling and three linear layers, with ReLU throughout.

    Input `(N, 1, 32, 32)`, output `(N, classes)` logits; 61,470 weights for 10 classes.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, classes)` of images `(N, 1, 32, 32)`."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def lenet5(num_classes: int = 10) -> LeNet5:
    """A LeNet-5 for 1 x 32 x 32, initialised by torch's global generator."""
    return LeNet5(num_classes)
