"""What the speed of dynamic sparse training is measured on, and what it is to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.dynamic_training import Task
from energy_model.errors import ArgumentError

REWIRING_TARGET, SELECTION_TARGET, DEEPR_TARGET, MASKED_TARGET = 1.02, 0.15, 1.5, 1.1
STATED = math.inf
"""The target of what is stated and not limited."""
PERIOD = 100
"""Steps from one event to the next, and the number of the step whose event is measured."""
DENSITY = 0.1
"""Share of the sparse tensors' weights that are active, where nothing else is said."""
_LEAST_SIDE = 64

# What is sparse, and the learning rates, are those of Mostafa and Wang, ICML 2019; ResNet-50 has
# its own divided for a batch of 8.
RESNET50 = Task(
    "ResNet-50",
    "torchvision.models:resnet50",
    (3, 224, 224),
    batch=8,
    dense=r"conv1|.*downsample.*",
    lr=0.003,
    classes=1000,
)
WRN16 = Task("WRN-16-1", "bench.zoo:wrn_16_1", (3, 32, 32), dense=r"conv1|.*shortcut|linear")
LENET300 = Task("LeNet-300-100", "bench.zoo:lenet_300_100_bn", (1, 28, 28))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured, and how long.

    Attributes:
        large: The network of large tensors.
        convolutional: A small one of convolutions.
        linear: A small one of linear layers.
        convolutional_steps: Steps of one turn of it.
        linear_steps: The same of the other.
        epoch: Steps of an epoch.
    """

    large: Task = RESNET50
    convolutional: Task = WRN16
    linear: Task = LENET300
    convolutional_steps: int = 5
    linear_steps: int = 100
    epoch: int = 540

    @classmethod
    def of(cls, batch: int, side: int) -> Sizes:
        """With so many images of that side in a step of ResNet-50.

        Raises:
            ArgumentError: The images are too small for its strides, or there are none.
        """
        if side < _LEAST_SIDE:
            raise ArgumentError(
                f"{side} is too small", where="size", remedy=f"Give at least {_LEAST_SIDE}."
            )
        return cls(large=replace(RESNET50, batch=batch, input_shape=(3, side, side)))

    @classmethod
    def quick(cls) -> Sizes:
        """So small that only whether everything runs can be seen."""
        return cls(RESNET50.small(), replace(WRN16, batch=4), LENET300, 1, 2, 6)
