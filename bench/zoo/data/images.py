"""Where the pixels of a data set are: in memory, or in one file per image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from energy_model.errors import StorageError


class Images(Protocol):
    """Images of one shape that are fetched by row number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        ...

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The images `(N, *shape)` of the rows int64 `(N,)`."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: `(N, C, H, W)` uint8, or float32 of any shape.
    """

    pixels: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.pixels.shape[1:])

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of the images of the rows."""
        return self.pixels[rows]


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images in files, decoded when they are taken: the shorter side to `size`, then the centre.

    Attributes:
        paths: The files, in any format that Pillow reads.
        size: Side of the square result in pixels.
        workers: Threads that decode.
    """

    paths: Sequence[Path]
    size: int
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return 3, self.size, self.size

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The decoded images uint8 `(N, 3, size, size)` of the rows.

        Raises:
            StorageError: A file is missing or is no image.
        """
        paths = [self.paths[row] for row in rows.tolist()]
        with ThreadPoolExecutor(self.workers) as pool:
            decoded = list(pool.map(self._decode, paths))
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                return _square(image.convert("RGB"), self.size)
        except (OSError, UnidentifiedImageError) as error:
            raise StorageError(
                f"the image cannot be read ({error})",
                where=str(path),
                remedy="Restore the file, or remove it from its class folder.",
            ) from error


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def resize_images(pixels: NDArray[np.uint8], size: int, how: str) -> NDArray[np.uint8]:
    """Square images of another size.

    Args:
        pixels: `(N, H, W)` or `(N, H, W, 3)`.
        size: The new side.
        how: `bilinear`, each image by Pillow; or `pad`, a black border, the odd pixel right and
            below (a larger image loses its border).

    Returns:
        `(N, size, size)` or `(N, size, size, 3)`.
    """
    height, width = pixels.shape[1:3]
    if (height, width) == (size, size):
        return pixels
    if how == "pad":
        return _pad(pixels, size)
    resized = np.empty((len(pixels), size, size, *pixels.shape[3:]), np.uint8)
    for row, image in enumerate(pixels):
        picture = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        resized[row] = np.asarray(picture)
    return resized


def _pad(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    padded = np.zeros((len(pixels), size, size, *pixels.shape[3:]), np.uint8)
    source, target = [slice(None)], [slice(None)]
    for side in pixels.shape[1:3]:
        before, kept = abs(size - side) // 2, min(size, side)
        inner, whole = slice(before, before + kept), slice(0, kept)
        source.append(whole if size >= side else inner)
        target.append(inner if size >= side else whole)
    padded[tuple(target)] = pixels[tuple(source)]
    return padded


def in_memory(pixels: NDArray[np.uint8]) -> ArrayImages:
    """Images `(N, H, W)` or `(N, H, W, 3)` as the networks want them, `(N, C, H, W)`."""
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    return ArrayImages(images.unsqueeze(1) if images.dim() == 3 else _channels_first(images))


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).contiguous()
