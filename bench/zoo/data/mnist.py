"""MNIST and the data sets in its format: Fashion-MNIST and KMNIST.

The packed files are read as they lie, so that their folder may be read-only. Their names and
checksums are torchvision's.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bench.zoo.data.images import in_memory, resize_images
from bench.zoo.data.source import Labelled, Source, missing, torchvision_class
from bench.zoo.data.spec import DataSpec
from energy_model.errors import StorageError

# Name: torchvision's class, which is also the folder.
_CLASSES: Mapping[str, str] = MappingProxyType(
    {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}
)
_UINT8 = 8


def load_mnist(spec: DataSpec, root: Path) -> Source:
    """`mnist`, `fashion` or `kmnist` from `ROOT/MNIST/raw` and so on, packed or not.

    Args:
        spec: The data set, its size and its `ci` flag (`ROOT/ci/MNIST/raw`).
        root: The data root.

    Raises:
        StorageError: A file is missing or damaged.
        CompressionError: torchvision is not installed.
    """
    name = _CLASSES[spec.name]
    folder = (root / "ci" if spec.ci else root) / name / "raw"
    get = f"`torchvision.datasets.{name}(ROOT, download=True)` fetches it."
    # The ci subset is another set of files, with no checksums of torchvision's.
    parts = [
        _read(folder, file, None if spec.ci else md5, f"{name} ({file})", get)
        for file, md5 in torchvision_class(name).resources
    ]
    train, test = (
        _labelled(images, labels, spec, folder)
        for images, labels in ((parts[0], parts[1]), (parts[2], parts[3]))
    )
    return Source(train, test, classes=10, normalize=spec.name)


def _labelled(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], spec: DataSpec, folder: Path
) -> Labelled:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise _damaged(folder, f"{images.shape} images and {labels.shape} labels do not fit")
    pixels = images if spec.size is None else resize_images(images, spec.size, spec.resize)
    return Labelled(in_memory(pixels), labels.astype(np.int64))


def _read(folder: Path, file: str, md5: str | None, what: str, get: str) -> NDArray[np.uint8]:
    packed, plain = folder / file, folder / file.removesuffix(".gz")
    if packed.exists():
        data = packed.read_bytes()
        if md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise _damaged(packed, "its md5 is not the official one")
        try:
            return read_idx(gzip.decompress(data), packed)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(packed, str(error)) from error
    if plain.exists():
        return read_idx(plain.read_bytes(), plain)
    raise missing(what, packed, get)


def read_idx(data: bytes, where: Path) -> NDArray[np.uint8]:
    """An array of bytes in the idx format of the MNIST page.

    Args:
        data: Two zero bytes, the type (8: unsigned bytes), the number of dimensions, their sizes as
            big-endian 32-bit integers, the content.
        where: The file, for the errors.

    Raises:
        StorageError: It is not that.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UINT8:
        raise _damaged(where, "it is no idx file of bytes")
    start = 4 + 4 * data[3]
    header = data[4:start] if len(data) >= start else b""
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    if len(shape) != data[3] or len(data) - start != math.prod(shape):
        raise _damaged(where, "its length is not what its header says")
    # A copy, because a tensor over read-only bytes would be writable.
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(f"damaged: {why}", where=str(path), remedy="Fetch the file again.")
