"""`load_data` on data that need no files, and on the user's own."""

from __future__ import annotations

import pytest
import torch

from bench.zoo import digits_batches
from bench.zoo.data import Batches, ShuffledBatches, load_data
from energy_model.errors import ArgumentError


def joined(batches):
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_the_digits_are_those_of_the_demonstration():
    data = load_data("digits", batch_size=64)
    train, valid, test = digits_batches(batch_size=64)
    for mine, theirs in ((data.valid, valid), (data.test, test)):
        for (x, y), (wanted_x, wanted_y) in zip(mine, theirs, strict=True):
            assert torch.equal(x, wanted_x)
            assert torch.equal(y, wanted_y)
    mine, theirs = joined(data.train), joined(train)
    assert sorted(map(tuple, mine[0].flatten(1).tolist())) == sorted(
        map(tuple, theirs[0].flatten(1).tolist())
    )
    assert (data.classes, data.input_shape) == (10, (1, 8, 8))
    assert data.description.startswith("digits: 1078 train, 359 valid, 360 test, 1x8x8, 10 classes")


def test_the_seed_of_a_run_changes_the_order_and_not_the_split():
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(joined(first.valid)[0], joined(second.valid)[0])
    assert not torch.equal(joined(first.train)[1], joined(second.train)[1])
    other = load_data("digits:split=1")
    assert not torch.equal(joined(first.valid)[0], joined(other.valid)[0])


def test_a_subset_leaves_the_test_set_whole():
    data = load_data("digits:subset=200")
    counts = [joined(part)[1].bincount(minlength=10).tolist() for part in (data.train, data.valid)]
    assert counts == [[18] * 10, [2] * 10]
    assert len(joined(data.test)[1]) == 360
    # Chosen within each part, so that no image of the whole `valid` is trained on.
    held = set(map(tuple, joined(load_data("digits").valid)[0].flatten(1).tolist()))
    assert held.isdisjoint(map(tuple, joined(data.train)[0].flatten(1).tolist()))


@pytest.mark.parametrize(("count", "words"), [(19, "at least 20"), (5000, "smaller subset")])
def test_a_subset_that_cannot_be(count, words):
    with pytest.raises(ArgumentError, match=words):
        load_data(f"digits:subset={count}")


def test_fake_data_have_the_shape_and_the_classes():
    data = load_data("fake:3x6x4:5", batch_size=8, seed=3)
    assert [type(part) for part in (data.train, data.valid, data.test)] == [
        ShuffledBatches,
        Batches,
        Batches,
    ]
    assert [len(part) for part in (data.train, data.valid, data.test)] == [4, 2, 2]
    for x, y in data.train:
        assert x.shape == (8, 3, 6, 4)
        assert 0 <= y.min() <= y.max() < 5
    assert (data.classes, data.input_shape) == (5, (3, 6, 4))
    assert "random numbers" in data.description


def test_fake_data_are_drawn_batch_by_batch_from_the_seed():
    generator = torch.Generator().manual_seed(3)
    drawn = [
        (torch.randn((8, 6), generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(8)
    ]
    data = load_data("fake:6:5", batch_size=8, seed=3)
    for (x, y), (wanted_x, wanted_y) in zip([*data.valid, *data.test], drawn[4:], strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)
    assert sorted(joined(data.train)[0][:, 0].tolist()) == sorted(
        joined(drawn[:4])[0][:, 0].tolist()
    )


def test_the_batch_size_of_the_specification_wins():
    data = load_data("fake:6:5:batch=3", batch_size=8)
    assert [len(y) for _, y in data.train] == [3] * 4


@pytest.mark.parametrize(
    "argument", ["1x8x8", "1x0x8:2", "1x8x8:0", "axb:2", "1x8x8:", ":3", "8::3"]
)
def test_malformed_fake_data(argument):
    with pytest.raises(ArgumentError, match="fake:SHAPE:CLASSES"):
        load_data(f"fake:{argument}")


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="negative"):
        load_data("digits", seed=-1)
    with pytest.raises(ArgumentError, match="empty"):
        load_data("digits", batch_size=0)
    with pytest.raises(ArgumentError, match="empty"):
        load_data("fake:6:5", batch_size=0)


MODULE = """
def batches(): return [1], [2], [3]
def train_only(): return [1], None, None
def two(): return [1], [2]
def none(): return None, [1], [2]
def number(): return 3
def broken(): raise RuntimeError("no disk")
def leaks():
    test = [2]
    return [1], test, test
def trained_on():
    train = [1]
    return train, None, train
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_zoo_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("user_module")
def test_the_users_own_data():
    data = load_data("my_zoo_data:batches")
    assert (data.train, data.valid, data.test) == ([1], [2], [3])
    assert (data.classes, data.input_shape) == (None, None)
    assert load_data("my_zoo_data:train_only").test is None


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two", "2 values"),
        ("none", "returns None as train.* only valid and test may be None"),
        ("number", "returns int"),
        ("broken", "no disk"),
        ("absent", "has no 'absent'"),
        ("leaks", "one object as valid and as test"),
        ("trained_on", "one object as train and as test"),
    ],
)
def test_what_the_user_returns_is_checked(name, words):
    with pytest.raises(ArgumentError, match=words):
        load_data(f"my_zoo_data:{name}")
