"""Random changes of images: each does what it is called, checked pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.zoo.data.augment import (
    Augmentation,
    random_crop,
    random_cutout,
    random_flip,
    random_rotation,
)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (200, 3, 8, 6), generator=generator, dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_window_of_the_padded_image(images):
    out = random_crop(images, 2, generator())
    padded = F.pad(images, (2, 2, 2, 2))
    offsets = set()
    for before, after in zip(padded, out, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(before[:, y : y + 8, x : x + 6], after)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    # 200 draws from 25 windows: every one is met.
    assert len(offsets) == 25


def test_a_crop_pads_an_eighth_by_default(images):
    assert torch.equal(random_crop(images, None, generator()), random_crop(images, 1, generator()))


def test_a_flip_mirrors_half_of_the_images(images):
    out = random_flip(images, None, generator())
    mirrored = 0
    for before, after in zip(images, out, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
        mirrored += torch.equal(after, before.flip(-1))
    assert 70 < mirrored < 130


def test_a_cutout_is_one_square_of_zeros(images):
    x = images.float()
    out = random_cutout(x, 3, generator())
    sizes = set()
    for before, after in zip(x, out, strict=True):
        gone = (after == 0).all(0)
        rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
        square = torch.zeros_like(gone)
        square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(gone, square)
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        sizes.add((len(rows), len(columns)))
    # Whole, or cut at the border, never larger.
    assert (3, 3) in sizes
    assert sizes <= {(a, b) for a in (2, 3) for b in (2, 3)}


def test_a_cutout_takes_half_the_side_by_default(images):
    x = images.float()
    assert torch.equal(random_cutout(x, None, generator()), random_cutout(x, 4, generator()))


@pytest.mark.parametrize(("drawn", "turns"), [(1.0, 1), (0.0, -1)])
def test_a_rotation_by_a_quarter_turn_is_exact(monkeypatch, drawn, turns):
    square = torch.randint(0, 256, (1, 1, 5, 5), generator=generator(), dtype=torch.uint8)
    # The ends of the range of angles: plus and minus the 90 degrees.
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([drawn]))
    turned = random_rotation(square, 90, generator())
    assert torch.equal(turned, square.rot90(turns, (2, 3)))


def test_a_rotation_keeps_distances_on_rectangles():
    # A disc in the middle of a rectangle stays a disc, whatever the angle.
    y, x = torch.meshgrid(torch.arange(-19.5, 20), torch.arange(-29.5, 30), indexing="ij")
    disc = ((x**2 + y**2) < 12**2).float().expand(20, 1, 40, 60)
    turned = random_rotation(disc, 90, generator())
    assert (turned - disc).abs().mean() < 0.01
    stripe = (x.abs() < 4).float().expand(20, 1, 40, 60)
    assert (random_rotation(stripe, 90, generator()) - stripe).abs().mean() > 0.05


def test_a_rotation_stays_within_its_angle_and_keeps_the_type(images):
    assert torch.equal(random_rotation(images, 0, generator()), images)
    still = random_rotation(images, 1, generator())
    wild = random_rotation(images, 90, generator())
    assert still.dtype == images.dtype
    change = [(out.float() - images).abs().mean() for out in (still, wild)]
    assert change[0] < change[1] / 3


@pytest.mark.parametrize("name", ["rotation", "crop", "flip", "cutout"])
def test_changes_follow_the_generator_alone(images, name):
    x = images.float()
    kept = x.clone()
    state = torch.get_rng_state()
    first, again, other = (Augmentation(name)(x, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, x)
    assert first.shape == x.shape


def test_changes_print_as_they_are_written():
    assert [str(Augmentation("crop", 4)), str(Augmentation("flip"))] == ["crop4", "flip"]
