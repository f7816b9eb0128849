"""Data that is read beside a training loses no batch of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from transform.gradients import Gradients
from transform.labelled import Labelled
from transform.read_apart import read_apart
from transform.unlabelled import Unlabelled

CPU = torch.device("cpu")


def loader(workers):
    x = torch.arange(32.0)[:, None]
    data = TensorDataset(x, torch.arange(32) % 4)
    return DataLoader(data, 4, num_workers=workers, persistent_workers=workers > 0)


def seen(items):
    return [int(inputs[0, 0]) for inputs, _ in items]


READERS = {
    "apart": lambda data, model: list(itertools.islice(read_apart(data), 3)),
    "unlabelled": lambda data, model: list(Unlabelled(data, model, CPU)(3)),
    "labelled": lambda data, model: Labelled(data, model, CPU)(3),
    "gradients": lambda data, model: Gradients(data, None, CPU)(model, 3),
}


@pytest.mark.parametrize(
    ("reader", "workers"),
    [
        *((reader, 0) for reader in READERS),
        ("apart", 1),
        *(
            pytest.param(reader, 1, marks=pytest.mark.slow)
            for reader in READERS
            if reader != "apart"
        ),
    ],
)
def test_an_epoch_that_is_being_read_stays_whole(reader, workers):
    data, model = loader(workers), nn.Linear(1, 4)
    running = iter(data)
    first = seen(itertools.islice(running, 2))
    READERS[reader](data, model)
    assert first + seen(running) == list(range(0, 32, 4))
    assert seen(data) == list(range(0, 32, 4))  # and so does the next one


def test_what_is_read_apart_begins_at_the_beginning():
    data = loader(1)
    running = iter(data)
    next(running)
    assert seen(read_apart(data)) == list(range(0, 32, 4))
    assert data._iterator is running
