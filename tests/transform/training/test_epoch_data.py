"""An epoch depends on the seed and its number alone."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset
from training_loaders import LOADERS
from training_runs import examples

from transform.training.epoch_data import EpochData

CPU = torch.device("cpu")


def read(source, number):
    return torch.cat([item[0] for item in source.epoch(number)])


class Worn(Dataset):
    """Changes its items at random, in a worker or not."""

    def __init__(self):
        self.x, self.y = examples()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + torch.rand(1) + random.random(), self.y[index]


def sampled():
    data = TensorDataset(*examples())
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(2))
    return DataLoader(data, batch_size=8, sampler=sampler)


def working(persistent=False):
    # Its generator is the loader's own, for the seeds of the workers.
    return DataLoader(
        Worn(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=persistent
    )


SOURCES = {name: make for name, make in LOADERS.items() if name != "list"} | {"sampler": sampled}


@pytest.mark.parametrize("name", SOURCES)
def test_epochs_by_number(name):
    data = SOURCES[name]()
    first = [read(EpochData(data, 5, CPU), number) for number in (0, 1, 2)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    again = EpochData(data, 5, CPU)
    assert torch.equal(read(again, 2), first[2])
    assert torch.equal(read(again, 0), first[0])
    next(iter(again.epoch(1)))  # not read to its end
    assert torch.equal(read(again, 1), first[1])
    assert torch.equal(read(EpochData(SOURCES[name](), 5, CPU), 1), first[1])


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "state_dict"])
def test_another_seed_gives_another_order(name):
    data = SOURCES[name]()
    assert not torch.equal(read(EpochData(data, 5, CPU), 0), read(EpochData(data, 6, CPU), 0))


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_drawn_meanwhile_does_not_count(name):
    source = EpochData(SOURCES[name](), 5, CPU)
    rows = []
    for item in source.epoch(1):
        torch.rand(7), random.random()
        rows.append(item[0])
    assert torch.equal(torch.cat(rows), read(source, 1))


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_loader(persistent):
    source = EpochData(working(persistent), 5, CPU)
    first = [read(source, number) for number in (0, 1)]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(read(source, 0), first[0])
    assert torch.equal(read(EpochData(working(), 5, CPU), 1), first[1])


def test_a_sampler_is_told_the_epoch():
    class Told:
        def __init__(self):
            self.number = None

        def set_epoch(self, number):
            self.number = number

        def __iter__(self):
            return iter(range(4))

        def __len__(self):
            return 4

    x, y = examples(4)
    loader = DataLoader(TensorDataset(x, y), sampler=Told())
    list(EpochData(loader, 5, CPU).epoch(6))
    assert loader.sampler.number == 6


def test_data_with_a_state_but_no_epochs_starts_as_it_came():
    class Counting:
        def __init__(self):
            self.read = 3

        def __iter__(self):
            self.read += 1
            yield torch.full((2, 1), float(self.read)), torch.zeros(2)

        def state_dict(self):
            return {"read": self.read}

        def load_state_dict(self, state):
            self.read = state["read"]

    data = Counting()
    source = EpochData(data, 5, CPU)
    assert [float(read(source, number)[0]) for number in (0, 1, 7)] == [4, 4, 4]
    assert data.read == 3
