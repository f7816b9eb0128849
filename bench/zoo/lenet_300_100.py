"""LeNet-300-100: the multilayer perceptron of the pruning papers, for 28 x 28 images.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998. The
variant with batch normalisation is that of Mostafa and Wang, "Parameter Efficient Training of Deep
Convolutional Neural Networks by Dynamic Sparse Reparameterization", ICML 2019.
"""

from __future__ import annotations

import itertools

from torch import nn

from energy_model.errors import ArgumentError

_PIXELS = 784
_WIDTHS = (300, 100)


def lenet_300_100(num_classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """Three linear layers with biases and ReLU between them.

    Input `(N, 1, 28, 28)`, or anything that flattens to 784; output `(N, num_classes)` logits.
    266,200 weights and 410 biases for 10 classes. Initialised by torch's global generator.

    Args:
        num_classes: Number of classes.
        width: Factor on the hidden layers' neurons, rounded to whole ones.

    Raises:
        ArgumentError: The width leaves a layer without neurons.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    widths = _widths(width)
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def lenet_300_100_bn(num_classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """The same, with batch normalisation after every linear layer, the logits included.

    The linear layers have no bias then: 266,200 weights and 820 parameters of the normalisation for
    10 classes, the papers' "267K". Initialised by torch's global generator.

    Args:
        num_classes: Number of classes.
        width: Factor on the hidden layers' neurons, rounded to whole ones.

    Raises:
        ArgumentError: The width leaves a layer without neurons.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in itertools.pairwise((*_widths(width), num_classes)):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _widths(width: float) -> tuple[int, ...]:
    hidden = tuple(round(neurons * width) for neurons in _WIDTHS)
    if min(hidden) < 1:
        raise ArgumentError(
            f"the width {width:g} leaves a layer without neurons",
            where="lenet_300_100",
            remedy="Take more than 0.005.",
        )
    return (_PIXELS, *hidden)
