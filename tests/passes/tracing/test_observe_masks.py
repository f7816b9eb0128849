"""Input masks: which products with a buffer mask the inputs of which convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from energy_model.input_support import InputSupport
from passes.tracing.observe import observe

SHAPE = (2, 6, 6)


def every_other(*shape):
    mask = torch.ones(shape)
    mask.view(-1)[1::2] = 0
    return mask


HALF = InputSupport.of(every_other(*SHAPE).numpy())
NONE = InputSupport.of(torch.zeros(SHAPE).numpy())


class Net(nn.Module):
    """Two convolutions `c` and `d`, two masks `mask` and `none`, and a function of them."""

    def __init__(self, function, mask=None):
        super().__init__()
        self.function = function
        self.c, self.d = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 4, padding="same")
        self.register_buffer("mask", every_other(*SHAPE) if mask is None else mask)
        self.register_buffer("none", torch.zeros(SHAPE))
        self.learned = nn.Parameter(every_other(*SHAPE))

    def forward(self, x):
        return self.function(self, x)


def inputs_of(function, mask=None, x=None):
    """The supports that a run shows, in order; the masks are seen by their values only."""
    net = Net(function, mask).eval()
    weights = [p for n, p in net.named_parameters() if n != "learned"]
    x = torch.randn(1, *SHAPE) if x is None else x
    return [product.inputs for product in observe(net, lambda m: m(x), weights).products]


def _two(net, x):
    masked, other = x * net.mask, x * net.none
    return net.c(masked), net.d(other), net.d(masked), net.c(other), net.c(x)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_mask_is_remembered_whatever_runs_in_between():
    assert inputs_of(_two) == [HALF, NONE, HALF, NONE, None]


MASKED = {
    "first operand": lambda n, x: n.c(n.mask * x),
    "a batch axis": lambda n, x: n.c(x * n.mask[None]),
    "a view of the buffer": lambda n, x: n.c(x * n.mask.view(-1).view(SHAPE)),
    "booleans": lambda n, x: n.c(x * n.mask),
    "the same elements again": lambda n, x: n.c((x * n.mask).detach().view_as(x)),
    "dropped out": lambda n, x: n.c(F.dropout(x * n.mask, training=False)),
    "the last of two": lambda n, x: n.c(x * n.none * n.mask),
    "padded with zeros": lambda n, x: n.c(F.pad(x * n.mask, (1, 2, 0, 1))),
    "other products after it": lambda n, x: [y := x * n.mask, x * 2, x * x, n.c(y)][-1],
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask(name):
    mask = every_other(*SHAPE).bool() if name == "booleans" else None
    assert inputs_of(MASKED[name], mask) == [HALF]


NOT_MASKED = {
    "nothing": lambda n, x: n.c(x),
    "the input of the product": lambda n, x: [x * n.mask, n.c(x)][1],
    "a scalar": lambda n, x: n.c(x * n.mask[0, 0, 1]),
    "one entry per channel": lambda n, x: n.c(x * n.mask[:, :1, 1:2]),
    "the same in all channels": lambda n, x: n.c(x * n.mask[0]),
    "another operation between": lambda n, x: n.c(torch.sigmoid(x * n.mask)),
    "changed in place": lambda n, x: n.c((x * n.mask).add_(1)),
    "changed in place through a view": lambda n, x: [y := x * n.mask, y[0].add_(1), n.c(y)][2],
    "turned": lambda n, x: n.c((x * n.mask).transpose(2, 3)),
    "cut": lambda n, x: n.c((x * n.mask)[:, :, 1:]),
    "padded with ones": lambda n, x: n.c(F.pad(x * n.mask, (1, 1), value=1.0)),
    "channels padded": lambda n, x: n.c(F.pad((x * n.mask)[:, :1], (0, 0, 0, 0, 0, 1))),
    "a parameter": lambda n, x: n.c(x * n.learned),
    "added": lambda n, x: n.c(x + n.mask),
}


@pytest.mark.parametrize("name", NOT_MASKED)
def test_no_mask(name):
    assert inputs_of(NOT_MASKED[name]) == [None]


def test_a_mask_of_ones_is_none():
    assert inputs_of(MASKED["first operand"], torch.ones(SHAPE)) == [None]
    assert inputs_of(MASKED["first operand"], torch.full(SHAPE, -1e-30)) == [None]


def test_only_which_entries_are_zero_counts():
    assert inputs_of(MASKED["first operand"], -3 * every_other(*SHAPE)) == [HALF]


def test_a_mask_serves_every_sample():
    function = MASKED["first operand"]
    assert inputs_of(function, x=torch.randn(3, *SHAPE)) == [HALF]


def test_tensors_of_inference_mode_have_no_version_and_are_seen():
    def masked(net, x):
        with torch.inference_mode():
            y = x * net.mask
        assert y.is_inference()
        return net.c(y)

    with torch.no_grad():
        assert inputs_of(masked) == [HALF]


def test_a_freed_product_is_not_mistaken_for_another():
    def many(net, x):
        for _ in range(20):
            x * net.mask  # freed at once: its memory may be used again
        return [net.c(torch.relu(x + k)) for k in range(20)]

    assert inputs_of(many) == [None] * 20


def test_a_transposed_convolution_is_masked_too():
    up = nn.ConvTranspose2d(2, 3, 3)
    net = Net(lambda n, x: up(x * n.mask)).eval()
    products = observe(net, lambda m: m(torch.randn(1, *SHAPE)), [up.weight]).products
    assert [product.inputs for product in products] == [HALF]
