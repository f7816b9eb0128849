"""The cache of decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.zoo.data.cache import cache_folder, cached_array

SHAPE = (2, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.arange(6, dtype=np.uint8).reshape(SHAPE)


def test_an_array_is_made_once(folder):
    make = Maker()
    first, second = cached_array("name", SHAPE, make), cached_array("name", SHAPE, make)
    assert np.array_equal(first, second)
    assert make.calls == 1
    assert [path.name for path in folder.iterdir()] == ["name.npy"]


@pytest.mark.parametrize("damage", [b"", b"nothing of numpy", b"\x93NUMPY"])
def test_a_damaged_file_is_made_anew(folder, damage):
    make = Maker()
    cached_array("name", SHAPE, make)
    (folder / "name.npy").write_bytes(damage)
    assert np.array_equal(cached_array("name", SHAPE, make), make())
    cached_array("name", SHAPE, Maker())
    assert make.calls == 3


def test_a_truncated_file_and_another_shape_are_made_anew(folder):
    make = Maker()
    cached_array("name", SHAPE, make)
    whole = (folder / "name.npy").read_bytes()
    (folder / "name.npy").write_bytes(whole[:-1])
    assert np.array_equal(cached_array("name", SHAPE, make), make())
    np.save(folder / "name.npy", np.zeros((3, 2), np.uint8))
    assert cached_array("name", SHAPE, make).shape == SHAPE
    np.save(folder / "name.npy", np.zeros(SHAPE))
    assert cached_array("name", SHAPE, make).dtype == np.uint8


def test_a_cache_that_cannot_be_written_is_a_warning(folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept"):
        assert cached_array("name", SHAPE, Maker()).shape == SHAPE


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("TRANSFORM_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "transform"
