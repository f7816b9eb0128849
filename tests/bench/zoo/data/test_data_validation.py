"""What is held out for validation: a tenth of every class, seen as the test images are."""

from __future__ import annotations

import pytest
import torch
from fake_files import write_mnist, write_pack

from bench.zoo.data import load_data

# After bench.zoo, which makes it importable.
pytest.importorskip("torchvision.datasets")


def joined(batches):
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.fixture(params=["cifar10-jpeg", "mnist:ci=1"])
def load(request, tmp_path, monkeypatch):
    """Two hundred training images, ten classes; image i is grey of value i."""
    monkeypatch.setenv("TRANSFORM_CACHE", str(tmp_path / "cache"))
    if request.param == "cifar10-jpeg":
        for part, count in (("train", 200), ("test", 20)):
            write_pack(tmp_path / "cifar10" / f"{part}_jpeg.npz", count)
    else:
        write_mnist(tmp_path / "ci" / "MNIST" / "raw", train=200)
    joint = "," if ":" in request.param else ":"
    return lambda **kw: load_data(
        f"{request.param}{joint}normalize=raw,augment=rotation+crop+flip+cutout",
        root=tmp_path,
        batch_size=32,
        **kw,
    )


def test_every_class_has_a_tenth_of_its_images_in_valid(load):
    data = load()
    counts = [joined(p)[1].bincount(minlength=10).tolist() for p in (data.train, data.valid)]
    assert counts == [[18] * 10, [2] * 10]


def test_valid_and_test_images_are_as_they_lie_in_the_files(load):
    data = load(seed=3)
    for part in (data.valid, data.test):
        inputs, targets = joined(part)
        flat = inputs.flatten(1)
        assert torch.equal(flat, flat[:, :1].expand_as(flat))  # one grey, nothing cut or padded
        assert torch.equal(flat[:, 0].long() % 10, targets)
        assert torch.equal(joined(part)[0], inputs)
    changed = joined(data.train)[0].flatten(1)
    assert (changed != changed[:, :1]).any(dim=1).sum() > 150


def test_valid_is_the_same_for_every_seed_of_a_run(load):
    first, second = joined(load(seed=0).valid), joined(load(seed=1).valid)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
