"""A small convolutional network for the 8 x 8 digits of scikit-learn."""

from __future__ import annotations

from torch import nn


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    # The batch normalisation that follows has the bias.
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def digits_cnn(num_classes: int = 10) -> nn.Sequential:
    """Three convolutions with batch normalisation and two linear layers.

    Input `(N, 1, 8, 8)`, output `(N, num_classes)` logits; 47,088 weights for 10 classes.
    Initialised by torch's global generator.
    """
    return nn.Sequential(
        *_block(1, 16),
        *_block(16, 32),
        nn.MaxPool2d(2),
        *_block(32, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 240),
        nn.ReLU(),
        nn.Linear(240, num_classes),
    )
