"""Batches: complete, in the promised order, and resumed bit for bit."""

from __future__ import annotations

import pytest
import torch

from bench.zoo.data.augment import Augmentation, parse_augmentations
from bench.zoo.data.images import ArrayImages
from bench.zoo.data.loader import Batches, Examples, ShuffledBatches
from bench.zoo.data.normalize import NORMALIZATIONS
from energy_model.errors import ArgumentError, StorageError

COUNT = 50


def examples():
    """Image i is filled with i, and so is its target."""
    numbers = torch.arange(COUNT)
    pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return Examples(ArrayImages(pixels), numbers, torch.arange(5, COUNT))


def shuffled(seed=0, augment="none"):
    raw = NORMALIZATIONS["raw"]
    return ShuffledBatches(examples(), 16, raw, parse_augmentations(augment), seed)


def flat(batches):
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_fixed_batches_are_the_rows_in_order_every_time():
    batches = Batches(examples(), 16, NORMALIZATIONS["raw"])
    for _ in range(2):
        inputs, targets = flat(batches)
        assert targets.tolist() == list(range(5, COUNT))
        assert torch.equal(inputs[:, 0, 0, 0], targets.float())
    assert [len(y) for _, y in batches] == [16, 16, 13]
    assert len(batches) == 3
    assert inputs.dtype == torch.float32


def test_without_a_normalisation_the_numbers_stay():
    numbers = torch.randn(4, 3, 2)
    whole = Examples(ArrayImages(numbers), torch.arange(4), torch.arange(4))
    assert torch.equal(flat(Batches(whole, 3, None))[0], numbers)


def test_every_epoch_is_another_order_of_the_same_rows():
    batches = shuffled()
    orders = [flat(batches)[1].tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(5, COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for inputs, targets in batches:
        assert torch.equal(inputs[:, 0, 0, 0], targets.float())


def test_the_order_follows_the_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (flat(shuffled(seed))[1].tolist() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other
    # The second epoch of one seed is not the first of the next.
    batches = shuffled(0)
    list(batches)
    assert flat(batches)[1].tolist() != other


def test_a_resumed_loader_goes_on_bit_for_bit():
    augment = "rotation+crop+flip+cutout"
    whole = shuffled(7, augment)
    epochs = [flat(whole) for _ in range(4)]
    broken = shuffled(7, augment)
    for _ in range(2):
        list(broken)
    state = broken.state_dict()
    assert state == {"seed": 7, "epoch": 2}
    resumed = shuffled(0, augment)
    resumed.load_state_dict(state)
    for inputs, targets in epochs[2:]:
        again_inputs, again_targets = flat(resumed)
        assert torch.equal(again_inputs, inputs)
        assert torch.equal(again_targets, targets)
    assert resumed.state_dict() == whole.state_dict()


def test_an_epoch_begins_with_its_iterator_and_not_with_its_first_batch():
    batches = shuffled()
    abandoned = iter(batches)
    assert batches.state_dict()["epoch"] == 1
    second = flat(batches)[1].tolist()
    # What the abandoned epoch gives later does not depend on what happened meanwhile.
    assert flat(abandoned)[1].tolist() == flat(shuffled())[1].tolist() != second


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"seed": 0},
        {"seed": 0, "epoch": -1},
        {"seed": 0, "epoch": True},
        {"seed": "0", "epoch": 1},
        {"seed": 0, "epoch": 1, "more": 2},
    ],
)
def test_a_state_of_something_else_is_refused(state):
    batches = shuffled(3)
    with pytest.raises(StorageError, match="no state of a data loader"):
        batches.load_state_dict(state)
    assert batches.state_dict() == {"seed": 3, "epoch": 0}


def test_cutout_zeroes_what_is_normalised_and_a_crop_what_is_not():
    white = torch.full((8, 1, 8, 8), 255, dtype=torch.uint8)
    whole = Examples(ArrayImages(white), torch.zeros(8, dtype=torch.int64), torch.arange(8))

    def values(change):
        centered = NORMALIZATIONS["centered"]
        batches = ShuffledBatches(whole, 8, centered, (Augmentation(*change),), seed=0)
        return set(flat(batches)[0].unique().tolist())

    assert values(("cutout", 4)) == {0.0, 0.5}  # the mean colour
    assert values(("crop", 4)) == {-0.5, 0.5}  # black


def test_bad_sizes_and_seeds_are_refused():
    with pytest.raises(ArgumentError, match="empty"):
        Batches(examples(), 0, None)
    with pytest.raises(ArgumentError, match="negative"):
        shuffled(-1)
