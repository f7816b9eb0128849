"""Nets with input masks for the tests of the method, and what their masks cost."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from lenet_problem import EYERISS, traced
from torch import nn

from energy_model.hardware import Hardware
from energy_model.input_price import input_prices
from passes.methods.input_masking import InputMasking

# Eight words of input cache: rows of the counterexample below leave it in strips.
TIGHT = Hardware("tight", input_cache_bytes=16)


class Shared(nn.Module):
    """One weight, used with two strides and two dilations on inputs of one size."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x):
        wide = F.conv2d(x, self.w, padding=2, dilation=2)
        return F.conv2d(x, self.w, padding=1)[..., ::2, ::2] + F.conv2d(
            wide[:, :2], self.w, None, 2, 1
        )


class PaddedOnce(nn.Module):
    """A convolution called twice, once on an input that a node of its own pads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x):
        return self.conv(F.pad(self.conv(x), (1, 1, 1, 1)))


NETS = {
    "two layers": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, bias=False)
        ),
        (2, 2, 7, 7),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 3, groups=6)),
        (2, 4, 8, 8),
    ),
    "one weight in several ways": (Shared, (2, 2, 8, 8)),
    "padded once": (PaddedOnce, (2, 2, 7, 7)),
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 3, 2, dilation=2)), (2, 2, 9)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Conv3d(3, 2, 2)), (2, 2, 4, 4, 4)),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)).to(
            memory_format=torch.channels_last
        ),
        (2, 4, 8, 8),
    ),
}


def built(make, shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval(), torch.randn(shape)


def attached(model, x, *, hardware=EYERISS, weighted=True, scored=False):
    return InputMasking.attach(traced(model, x), hardware, weighted=weighted, scored=scored)


def masking_of(name="two layers", seed=0, **options):
    """Attached masks, the example, and the generator of the test."""
    model, x = built(*NETS[name], seed)
    return attached(model, x, **options), x, torch.Generator().manual_seed(seed)


def fill_masks(masking, generator, share=None):
    """Random masks; 0 and 1 where a share of ones is given."""
    with torch.no_grad():
        for tensor in masking.tensors:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
            if share is not None:
                tensor.copy_((tensor < share).to(tensor.dtype))


def thin(masking, generator, share=0.3):
    """Zero most weights, some kernel offsets and some whole input channels."""
    for site in masking.graph.compressible:
        weight = masking.graph.weight(site)
        weight.masked_fill_(torch.rand(weight.shape, generator=generator) > share, 0.0)
        weight[..., :-1] = 0
        weight[:, 0] = 0


def copied(masking):
    return [tensor.detach().clone() for tensor in masking.tensors]


def prices_of(masking):
    uses = [masking.graph.by_name[mask.site].uses[0] for mask in masking.masks]
    return [input_prices(use.shape, masking.hardware) for use in uses]


def cost_of(masking, weighted, supports):
    """What inputs cost, and the channels that they are in where these can go."""
    total = 0
    for price, opening, keep in zip(prices_of(masking), masking._openings, supports, strict=True):
        assert weighted or not opening.any()
        total += int((price if weighted else np.ones_like(price))[keep].sum())
        total += int(opening[keep.reshape(len(keep), -1).any(axis=1)].sum())
    return total


def kept_cost(masking, weighted):
    return cost_of(masking, weighted, [(t != 0).numpy() for t in masking.tensors])


def all_cost(masking, weighted):
    return cost_of(masking, weighted, [(t == t).numpy() for t in masking.tensors])


def recounted(masking, x):
    """Energy of all activations, from a new trace of what runs now."""
    sites = traced(masking.graph.runnable, x).sites
    return sum(site.activation_energy(masking.hardware) for site in sites)


ROWS = [2, 3, 3, 1, 4, 2, 3, 1]


def counterexample():
    """Masking one more input of row 5 makes the strips pack worse: 7 rows' words again, then 10."""
    model, x = built(lambda: nn.Conv2d(1, 3, 2, stride=2), (2, 1, 8, 4))
    masking = attached(model, x, hardware=TIGHT)
    support = torch.tensor([[[1.0] * n + [0.0] * (4 - n) for n in ROWS]])
    with torch.no_grad():
        masking.tensors[0].copy_(support)
    masking.refresh()
    return masking, x
