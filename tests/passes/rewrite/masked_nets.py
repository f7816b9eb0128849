"""Small nets whose convolutions are called in all the ways there are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.rewrite.input_masks import InputMask, mask_of
from passes.tracing.trace import trace


def seeded(make, seed=0):
    """What `make()` returns, from a seed, without touching the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Called(nn.Module):
    """Runs a function of itself and its input; keywords become its members."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            value = nn.Parameter(member) if isinstance(member, torch.Tensor) else member
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


class FixedBatch(nn.Module):
    """Runs with four samples and no other number: input `(4, 1, 6, 6)`."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.conv(x).reshape(4, 32))


class Branching(nn.Module):
    """Control flow that depends on values: it stays an opaque leaf."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else -self.conv(x)


def _twice(self, x):
    return self.conv(torch.relu(self.conv(x)))


def _shared_input(self, x):
    return self.a(x) + self.b(x)


def _two_strides(self, x):
    return F.conv2d(x, self.w, padding=1)[..., ::2, ::2] + F.conv2d(x, self.w, None, 2, 1)


def _two_dilations(self, x):
    return F.conv2d(x, self.w, padding=1) + F.conv2d(x, self.w, dilation=2, padding=2)


def _conv(*sizes, **options):
    return lambda: nn.Sequential(nn.Conv2d(*sizes, **options))


# A way to build each, the shape of its input, and the sites of the masks it takes.
NETS = {
    "module": (_conv(2, 3, 3, padding=1), (2, 2, 6, 6), ["0"]),
    "functional": (
        lambda: Called(lambda m, x: F.conv2d(x, m.w, padding=1), w=torch.randn(3, 2, 3, 3)),
        (2, 2, 6, 6),
        ["w"],
    ),
    "functional by keyword": (
        lambda: Called(lambda m, x: F.conv2d(weight=m.w, input=x), w=torch.randn(3, 2, 3, 3)),
        (2, 2, 6, 6),
        ["w"],
    ),
    "called twice": (
        lambda: Called(_twice, conv=nn.Conv2d(2, 2, 3, padding=1)),
        (2, 2, 6, 6),
        ["conv", "conv"],
    ),
    "shared input": (
        lambda: Called(_shared_input, a=nn.Conv2d(2, 3, 3), b=nn.Conv2d(2, 3, 3)),
        (2, 2, 6, 6),
        ["a", "b"],
    ),
    "two strides of one weight": (
        lambda: Called(_two_strides, w=torch.randn(3, 2, 3, 3)),
        (2, 2, 6, 6),
        ["w", "w"],
    ),
    "two dilations of one weight": (
        lambda: Called(_two_dilations, w=torch.randn(3, 2, 3, 3)),
        (2, 2, 6, 6),
        ["w", "w"],
    ),
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1)), (2, 2, 9), ["0"]),
    "3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 3, padding=1)), (2, 2, 4, 4, 4), ["0"]),
    "grouped": (_conv(4, 6, 3, groups=2, stride=2), (2, 4, 7, 7), ["0"]),
    "depthwise": (_conv(4, 4, 3, groups=4, dilation=2), (2, 4, 7, 7), ["0"]),
    "same": (_conv(2, 3, 3, padding="same"), (2, 2, 6, 6), ["0"]),
    "same, even kernel": (_conv(2, 3, (2, 4), padding="same"), (2, 2, 6, 6), ["0"]),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)).to(
            memory_format=torch.channels_last
        ),
        (2, 2, 8, 8),
        ["0", "1"],
    ),
    "names that differ by a dot": (
        lambda: Called(
            lambda m, x: m.a_b(m.a(x)),
            a=Called(lambda m, x: m.b(x), b=nn.Conv2d(2, 2, 1)),
            a_b=nn.Conv2d(2, 2, 1),
        ),
        (2, 2, 4, 4),
        ["a.b", "a_b"],
    ),
    "a batch of four and no other": (FixedBatch, (4, 1, 6, 6), ["conv"]),
    "after a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Conv2d(3, 3, 3)),
        (2, 2, 6, 6),
        ["1"],
    ),
}


def net(name) -> tuple[nn.Module, torch.Tensor]:
    """A net in evaluation mode and an example."""
    make, shape, _ = NETS[name]
    return seeded(lambda: (make().eval(), torch.randn(shape)))


def traced(model, x) -> ModelGraph:
    return trace(model, as_call(model, x))


def set_mask(graph: ModelGraph, mask: InputMask, values) -> None:
    """Write a mask's entries."""
    with torch.no_grad():
        mask_of(graph, mask).copy_(torch.as_tensor(values))
