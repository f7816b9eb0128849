"""Models and batches for the tests of `transform.sensitivity`."""

from __future__ import annotations

import torch
from torch import nn
from transform_nets import SmallConv, made


def line(*weights):
    """`y = w x` without bias; inputs of the identity read the weights out."""
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))
    return model


EYE = torch.eye(4)
TRUTH = torch.tensor([[1.0], [-2.0], [3.0], [4.0]])


def conv(batches=3, seed=0):
    """A net in training mode and labelled batches of 4, 4, ... and 3 samples."""
    model, _ = made(SmallConv, seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = [4] * (batches - 1) + [3]
    data = [
        (
            torch.randn(size, 2, 8, 8, generator=generator),
            torch.randint(0, 5, (size,), generator=generator),
        )
        for size in sizes
    ]
    return model, data
