"""The same seed, the same bits: whatever the loader, the state outside, or the threads."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_loaders import LOADERS, mixed, own
from training_runs import digest, examples, rich, run

from transform.fingerprint import state_digest
from transform.training.randomness import random_state, seeded, set_random_state

CPU = torch.device("cpu")
TRAIN = {"epochs": 3, "lr": 0.1}


@pytest.mark.spread(1)
@pytest.mark.parametrize("loader", LOADERS)
def test_the_same_seed_twice_is_bit_identical(loader):
    make = LOADERS[loader]
    first = digest(model=rich(), data=make(), train=TRAIN, seed=3)
    torch.rand(5)
    assert digest(model=rich(), data=make(), train=TRAIN, seed=3) == first


@pytest.mark.spread(1)
@pytest.mark.parametrize("loader", LOADERS)
def test_another_seed_is_another_run(loader):
    make = LOADERS[loader]
    runs = {digest(model=rich(), data=make(), train=TRAIN, seed=seed) for seed in range(3)}
    assert len(runs) == 3


@pytest.mark.slow
def test_an_order_from_an_own_generator_does_not_depend_on_the_seed():
    model = rich(p=0.0)
    assert digest(model=model, data=own(), train=TRAIN, seed=1) == digest(
        model=model, data=own(), train=TRAIN, seed=2
    )
    assert digest(model=model, data=mixed(), train=TRAIN, seed=1) != digest(
        model=model, data=mixed(), train=TRAIN, seed=2
    )


def test_epochs_are_mixed_anew():
    """A loader that shuffles once would train as its first order, repeated."""
    orders = []

    class Noted(DataLoader):
        def __iter__(self):
            found = list(super().__iter__())
            orders.append(torch.cat([y for _, y in found]).tolist())
            return iter(found)

    loader = Noted(TensorDataset(examples()[0], torch.arange(24) % 3), batch_size=8, shuffle=True)
    digest(data=loader, train=TRAIN)
    assert len({tuple(order) for order in orders[-3:]}) == 3


def test_evaluation_draws_nothing_from_training():
    plain_run = digest(model=rich(), data=mixed(), train=TRAIN | {"select": "last"})
    with_valid = TRAIN | {"select": "last", "eval_every": 1}
    assert digest(model=rich(), data=mixed(), train=with_valid, valid=mixed()) == plain_run


def on_threads(count, **options):
    torch.set_num_threads(count)
    try:
        return run(data=mixed(), train=TRAIN, **options).model
    finally:
        torch.set_num_threads(1)


def test_so_small_a_model_is_not_split_between_threads():
    assert state_digest(on_threads(2)) == state_digest(on_threads(1))


def test_with_a_norm_the_bits_depend_on_the_number_of_threads_and_nothing_else():
    """Its sums are split between threads: another number of threads rounds otherwise."""
    one, two, again = (on_threads(count, model=rich()) for count in (1, 2, 2))
    assert state_digest(two) == state_digest(again)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def drawn():
    return torch.rand(1).item(), random.random(), float(np.random.rand())  # noqa: NPY002


def test_the_state_of_all_generators_comes_back():
    with seeded(5, CPU):
        np.random.randn()  # noqa: NPY002 -- leaves a second normal number cached
        random.gauss(0, 1)
        state = random_state(CPU)
        first = drawn(), np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
        set_random_state(state, CPU)
        assert (drawn(), np.random.randn(), random.gauss(0, 1)) == first  # noqa: NPY002


def test_seeding_is_inside_only():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = drawn()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    with seeded(5, CPU):
        inside = drawn()
    assert drawn() == expected
    with seeded(5, CPU):
        assert drawn() == inside
    with seeded(6, CPU):
        assert drawn() != inside
    with pytest.raises(KeyError), seeded(5, CPU):
        raise KeyError
    with seeded(2**62, CPU):
        assert drawn() != inside
