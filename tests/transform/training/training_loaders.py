"""Data loaders that keep their state in different places."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_runs import batches, examples

from bench.zoo.data.images import ArrayImages
from bench.zoo.data.loader import Examples, ShuffledBatches


class Noisy:
    """Batches that are changed at random by all three global generators."""

    def __len__(self):
        return 3

    def __iter__(self):
        for x, y in batches():
            noise = torch.randn(1) + random.random() + np.random.rand()  # noqa: NPY002
            yield x + 0.1 * noise.float(), y


def mixed(generator=None):
    """Shuffles from the global generator or its own."""
    data = TensorDataset(*examples())
    return DataLoader(data, batch_size=8, shuffle=True, generator=generator)


def own():
    """Shuffles from a generator of its own."""
    return mixed(torch.Generator().manual_seed(11))


def stateful():
    """Has `state_dict` and `load_state_dict`."""
    x, y = examples()
    return ShuffledBatches(Examples(ArrayImages(x), y, torch.arange(24)), 8, None, (), seed=4)


LOADERS = {
    "list": batches,
    "noisy": Noisy,
    "shuffled": mixed,
    "own generator": own,
    "state_dict": stateful,
}
