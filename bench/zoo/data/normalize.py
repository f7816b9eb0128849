"""From 8-bit pixels to the numbers that a network was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from energy_model.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Normalization:
    """`(pixel / scale - mean) / std`, per channel.

    Attributes:
        mean: One value per channel, or one for all.
        std: As `mean`.
        scale: What one unit of the network's input is in pixel values.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise a batch.

        Args:
            pixels: uint8 `(N, C, H, W)`.

        Returns:
            float32 `(N, C, H, W)`, the same bits as dividing, subtracting and dividing again.
        """
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.to(torch.float32).div_(self.scale).sub_(mean).div_(std)


# Mean and deviation of the training pixels, as the field uses them. `none` is 0..1, `raw` 0..255.
NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType(
    {
        "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "mnist": Normalization((0.1307,), (0.3081,)),
        "fashion": Normalization((0.2860,), (0.3530,)),
        "kmnist": Normalization((0.1918,), (0.3483,)),
        "centered": Normalization((0.5,), (1.0,)),
        "none": Normalization((0.0,), (1.0,)),
        "raw": Normalization((0.0,), (1.0,), scale=1.0),
    }
)


def normalization(name: str, channels: int) -> Normalization:
    """A normalisation by name.

    Args:
        name: A key of `NORMALIZATIONS`.
        channels: Channels of the images.

    Raises:
        ArgumentError: It has another number of channels.
    """
    found = NORMALIZATIONS[name]
    if len(found.mean) not in (1, channels):
        raise ArgumentError(
            f"normalize={name} has {len(found.mean)} channels, the images have {channels}",
            where="data",
            remedy="Take centered or none, or leave it away.",
        )
    return found
