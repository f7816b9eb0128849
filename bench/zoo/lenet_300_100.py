"""LeNet-300-100: the multilayer perceptron of the pruning papers, for 28 x 28 images.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998. The
variant with batch normalisation is that of Mostafa and Wang, "Parameter Efficient Training of Deep
Convolutional Neural Networks by Dynamic Sparse Reparameterization", ICML 2019.
"""

from __future__ import annotations

import itertools

from torch import nn

_WIDTHS = (784, 300, 100)


def lenet_300_100(num_classes: int = 10) -> nn.Sequential:
    """Three linear layers with biases and ReLU between them.

    Input `(N, 1, 28, 28)`, or anything that flattens to 784; output `(N, num_classes)` logits.
    266,200 weights and 410 biases for 10 classes. Initialised by torch's global generator.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in itertools.pairwise(_WIDTHS):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_WIDTHS[-1], num_classes))


def lenet_300_100_bn(num_classes: int = 10) -> nn.Sequential:
    """The same, with batch normalisation after every linear layer, the logits included.

    The linear layers have no bias then: 266,200 weights and 820 parameters of the normalisation for
    10 classes, the papers' "267K". Initialised by torch's global generator.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in itertools.pairwise((*_WIDTHS, num_classes)):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
