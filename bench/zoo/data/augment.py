"""Random changes of training images, by name, a batch at a time.

A trailing number is the parameter: `crop4`, `cutout8`, `rotation10`. All randomness comes from the
generator that is handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.nn import functional as F

from energy_model.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One kind of change.

    Attributes:
        name: `rotation`, `crop`, `flip` or `cutout`.
        amount: Degrees, pixels of padding, unused, or pixels of the square's side; None for the
            default: 15 degrees, an eighth of the side, half the side.
    """

    name: str
    amount: int | None = None

    def __str__(self) -> str:
        return self.name if self.amount is None else f"{self.name}{self.amount}"

    @property
    def after_normalizing(self) -> bool:
        """Whether the change is one of normalised inputs, not of pixels."""
        return self.name == "cutout"

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change each image of `(N, C, H, W)` on its own; shape and type are kept."""
        return _CHANGES[self.name](images, self.amount, generator)


def random_rotation(
    images: torch.Tensor, degrees: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Turn each image about its centre by an angle uniform in `-degrees..degrees`; black outside.

    Bilinear. `images` is `(N, C, H, W)`, uint8 or floating.
    """
    limit = math.radians(15 if degrees is None else degrees)
    angle = (2 * torch.rand(len(images), generator=generator) - 1) * limit
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The grid's units are half sides: a rectangle needs its aspect ratio to stay rigid.
    aspect = images.shape[-2] / images.shape[-1]
    rows = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    turned = F.grid_sample(images.to(torch.float32), grid, align_corners=False)
    return turned if images.is_floating_point() else turned.round_().to(images.dtype)


def random_crop(
    images: torch.Tensor, padding: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Pad `(N, C, H, W)` with `padding` black pixels on every side and cut H x W out at random."""
    height, width = images.shape[-2:]
    pad = max(height, width) // 8 if padding is None else padding
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    count = len(images)
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator)
    # The indices come first in the result, the slice of the channels after them.
    return windows[torch.arange(count), :, top, left].contiguous()


def random_flip(images: torch.Tensor, _: int | None, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of `(N, C, H, W)` left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def random_cutout(
    images: torch.Tensor, side: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Set a square of each image of `(N, C, H, W)` to zero; it may reach over the border.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv 1708.04552: of normalised images, so that zero is the mean colour.
    """
    height, width = images.shape[-2:]
    length = max(height, width) // 2 if side is None else side
    unit = torch.rand((2, len(images), 1), generator=generator)

    def covered(size: int, share: torch.Tensor) -> torch.Tensor:
        start = (share * size).long() - length // 2
        place = torch.arange(size)
        return (place >= start) & (place < start + length)

    square = covered(height, unit[0]).unsqueeze(2) & covered(width, unit[1]).unsqueeze(1)
    return images.masked_fill(square.unsqueeze(1), 0)


_Change = Callable[[torch.Tensor, int | None, torch.Generator], torch.Tensor]

# In the order in which they are applied, whatever the order of writing.
_CHANGES: Mapping[str, _Change] = MappingProxyType(
    {
        "rotation": random_rotation,
        "crop": random_crop,
        "flip": random_flip,
        "cutout": random_cutout,
    }
)


def parse_augmentations(text: str) -> tuple[Augmentation, ...]:
    """Read `crop+flip`, `crop4+cutout8`, `none`; returned in the order of application.

    Raises:
        ArgumentError: Unknown or repeated name, or a number where none belongs.
    """
    found: dict[str, Augmentation] = {}
    for part in text.split("+") if text != "none" else []:
        match = re.fullmatch(r"([a-z]+)([1-9]\d{0,3})?", part)
        name = match[1] if match else part
        if match is None or name not in _CHANGES or (name == "flip" and match[2]):
            raise ArgumentError(
                f"augment={text}: {part!r} is not understood",
                where="data",
                remedy=f"Join some of {', '.join(_CHANGES)} by +, a number behind: crop4+flip.",
            )
        if name in found:
            raise ArgumentError(
                f"augment={text}: {name!r} stands twice", where="data", remedy="Keep one of them."
            )
        found[name] = Augmentation(name, int(match[2]) if match[2] else None)
    return tuple(found[name] for name in _CHANGES if name in found)
