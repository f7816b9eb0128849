"""The handwritten digits that come with scikit-learn, and a plain way to train on them.

1,797 images of 8 x 8 pixels, 10 classes: a test part of the data of Alpaydin and Kaynak, "Optical
Recognition of Handwritten Digits", UCI 1998. Small enough for a demonstration without a download.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from energy_model.errors import CompressionError

Batch = tuple[torch.Tensor, torch.Tensor]

_SHARES = (0.6, 0.2)


def digits_batches(
    batch_size: int = 64, seed: int = 0
) -> tuple[list[Batch], list[Batch], list[Batch]]:
    """Train, valid and test batches: 60, 20 and 20 % of each class.

    Args:
        batch_size: Images in a batch; the last one of a part may be smaller.
        seed: Seed of the split.

    Returns:
        Lists of `(x, y)`: x float32 `(N, 1, 8, 8)`, scaled to 0..1 and then standardised by mean
        and deviation of the training pixels; y int64 `(N,)`.

    Raises:
        CompressionError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CompressionError(
            "the digits need scikit-learn", remedy="Install the extra `demo`."
        ) from error
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    parts = [torch.from_numpy(rows) for rows in _stratified(data.target, seed)]
    mean, deviation = pixels[parts[0]].mean(), pixels[parts[0]].std()
    pixels = (pixels - mean) / deviation
    train, valid, test = (
        [(pixels[rows], labels[rows]) for rows in torch.split(part, batch_size)] for part in parts
    )
    return train, valid, test


def _stratified(labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Row numbers of the three parts, each in random order."""
    generator = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum([round(share * len(rows)) for share in _SHARES])
        for part, chunk in zip(parts, np.split(rows, ends), strict=True):
            part.append(chunk)
    return [generator.permutation(np.concatenate(part)) for part in parts]


def train_digits(model: nn.Module, train: list[Batch], epochs: int = 15, seed: int = 0) -> None:
    """Train a classifier in place: Adam at 2e-3, cosine decay to 0, cross-entropy.

    Args:
        model: Maps `(N, 1, 8, 8)` to logits `(N, 10)`; its train/eval mode is kept.
        train: Batches `(x, y)`; examples are mixed anew in every epoch.
        epochs: Passes over the data.
        seed: Seed of the mixing; the weights start as they are.
    """
    inputs, targets = (torch.cat(parts) for parts in zip(*train, strict=True))
    batch_size = len(train[0][0])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    training = model.training
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for rows in torch.split(order, batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(inputs[rows]), targets[rows]))
            optimizer.step()
            schedule.step()
    model.train(training)
