"""ResNet-8 of the MLPerf Tiny benchmark, for 32 x 32 images.

Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021: the reference model of the image
classification task, laid out so that its trained weights, converted from Keras, load strictly.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# Input channels, output channels, kernel, stride of each convolution, in order of the weights.
_CONVOLUTIONS = (
    (3, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 32, 3, 2),
    (32, 32, 3, 1),
    (16, 32, 1, 2),
    (32, 64, 3, 2),
    (64, 64, 3, 1),
    (32, 64, 1, 2),
)
_NORMALISED = (16, 16, 16, 32, 32, 64, 64)


class ResNet8(nn.Module):
    """A stem and three residual blocks of 16, 32 and 64 channels; convolutions have biases.

    Input `(N, 3, 32, 32)`, pixels 0..255 for the trained weights (`normalize=raw`); output
    `(N, num_classes)` logits; 78,186 parameters for 10 classes.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.ModuleList(
            nn.Conv2d(channels, out, kernel, stride, padding=1 if (kernel, stride) == (3, 1) else 0)
            for channels, out, kernel, stride in _CONVOLUTIONS
        )
        # Keras' default epsilon.
        self.bn = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in _NORMALISED)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, 32, 32)`."""
        conv, bn = self.conv, self.bn
        out = F.relu(bn[0](conv[0](x)))
        out = F.relu(out + bn[2](conv[2](F.relu(bn[1](conv[1](out))))))
        branch = bn[4](conv[4](F.relu(bn[3](conv[3](_pad_as_tensorflow(out))))))
        out = F.relu(conv[5](out) + branch)
        branch = bn[6](conv[7](F.relu(bn[5](conv[6](_pad_as_tensorflow(out))))))
        out = F.relu(conv[8](out) + branch)
        logits: torch.Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
        return logits


def _pad_as_tensorflow(x: torch.Tensor) -> torch.Tensor:
    """The padding "same" of a 3 x 3 convolution of stride 2 on an even image."""
    return F.pad(x, (0, 1, 0, 1))


def mlperftiny_resnet8(num_classes: int = 10) -> ResNet8:
    """MLPerf Tiny's ResNet-8, initialised by torch's global generator."""
    return ResNet8(num_classes)
