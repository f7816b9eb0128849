"""Small data sets written in the formats of the real ones."""

from __future__ import annotations

import gzip
import io

import numpy as np
from PIL import Image


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=60, test=20, side=28, packed=True):
    """MNIST's four files; pixel values tell the row: image i is filled with i."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.arange(count)[:, None, None] * np.ones((side, side), np.int64)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            data = idx_bytes(array)
            if packed:
                (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
            else:
                (folder / f"{part}-{name}-ubyte").write_bytes(data)


def jpeg(colour, side=32):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_pack(path, count, header=b""):
    """A pack of JPEG files; image i is grey of value i."""
    files = [jpeg((i, i, i)) for i in range(count)]
    assert all(file.startswith(header) for file in files)
    bodies = [file[len(header) :] for file in files]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        header=np.frombuffer(header, np.uint8),
        data=np.frombuffer(b"".join(bodies), np.uint8),
        offsets=np.cumsum([0, *map(len, bodies)]),
        labels=np.arange(count) % 10,
    )


def write_folder(root, parts, classes=("cat", "dog"), count=10, size=(40, 20)):
    """One folder per part and class; the red value tells the image."""
    for part in parts:
        for number, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                colour = (number * count + index, 100, 200)
                Image.new("RGB", size, colour).save(folder / f"{index:03}.png")
