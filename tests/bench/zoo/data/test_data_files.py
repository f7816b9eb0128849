"""Data sets from files: read as they lie, and said what is wrong with them."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch
from fake_files import jpeg, write_folder, write_mnist, write_pack

from bench.zoo.data import cifar, load_data
from bench.zoo.data.mnist import read_idx
from bench.zoo.data.split import stratified_split
from energy_model.errors import CompressionError, StorageError

# After bench.zoo, which makes it importable.
datasets = pytest.importorskip("torchvision.datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORM_CACHE", str(tmp_path / "cache"))


def rows(batches):
    """The first pixel of every image, which tells its row, and the targets."""
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs)[:, 0].flatten(1)[:, 0].tolist(), torch.cat(targets).tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_and_unpacked(tmp_path, packed):
    write_mnist(tmp_path / "ci" / "MNIST" / "raw", packed=packed)
    before = sorted(tmp_path.rglob("*"))
    data = load_data("mnist:ci=1,normalize=raw", root=tmp_path, batch_size=16)
    train, valid, test = (rows(part) for part in (data.train, data.valid, data.test))
    assert sorted(train[0] + valid[0]) == list(range(60))
    assert test == ([float(i) for i in range(20)], [i % 10 for i in range(20)])
    assert all(label == row % 10 for row, label in zip(*train, strict=True))
    assert valid[0] == stratified_split(np.arange(60) % 10, seed=0)[1].tolist()
    assert data.input_shape == (1, 28, 28)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_subset_trains_on_nothing_that_the_whole_set_validates_on(tmp_path):
    write_mnist(tmp_path / "ci" / "MNIST" / "raw", train=200)
    whole = load_data("mnist:ci=1,normalize=raw", root=tmp_path)
    part = load_data("mnist:ci=1,normalize=raw,subset=100", root=tmp_path)
    assert set(rows(part.train)[0]) < set(rows(whole.train)[0])
    assert set(rows(part.valid)[0]) < set(rows(whole.valid)[0])
    assert [len(p.examples) for p in (part.train, part.valid, part.test)] == [90, 10, 20]


def test_mnist_is_resized_before_it_is_normalised(tmp_path):
    write_mnist(tmp_path / "ci" / "MNIST" / "raw", side=28)
    padded = load_data("mnist:ci=1,normalize=raw,size=32,resize=pad", root=tmp_path)
    image = next(iter(padded.test))[0][7, 0]
    assert image.shape == (32, 32)
    assert (image[2:30, 2:30] == 7).all()
    assert image.sum() == 7 * 28 * 28
    assert padded.description.endswith("ci subset; resized (pad); normalize=raw")
    smooth = load_data("mnist:ci=1,normalize=raw,size=32", root=tmp_path)
    assert (next(iter(smooth.test))[0][7] == 7).all()


@pytest.mark.parametrize(("name", "folder"), [("fashion", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_the_relatives_of_mnist(tmp_path, name, folder):
    write_mnist(tmp_path / folder / "raw", packed=False)
    data = load_data(name, root=tmp_path)
    assert len(data.train.examples) == 54
    assert f"normalize={name}" in data.description


def test_a_packed_file_of_another_content_is_refused(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(StorageError, match="md5 is not the official one"):
        load_data("mnist", root=tmp_path)


def test_a_missing_file_says_which_and_how_to_get_it(tmp_path):
    write_mnist(tmp_path / "ci" / "MNIST" / "raw")
    (tmp_path / "ci" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(StorageError) as caught:
        load_data("mnist:ci=1", root=tmp_path)
    for words in ("t10k-labels-idx1-ubyte.gz", "download=True", "--data-root", "TRANSFORM_DATA"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0"), "no idx file"),
        (gzip.compress(b"\0\0"), "no idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x09\0"), "its length"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "its length"),
        (b"not packed", "[Nn]ot a gzipped file"),
        (gzip.compress(bytes(100))[:-5], "damaged"),
    ],
    ids=["floats", "short", "content", "header", "unpacked", "truncated"],
)
def test_a_damaged_mnist_file(tmp_path, content, words):
    folder = tmp_path / "ci" / "MNIST" / "raw"
    write_mnist(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(StorageError, match=words):
        load_data("mnist:ci=1", root=tmp_path)


def test_labels_of_another_number_are_refused(tmp_path):
    folder = tmp_path / "ci" / "MNIST" / "raw"
    write_mnist(folder)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(
        (folder / "train-labels-idx1-ubyte.gz").read_bytes()
    )
    with pytest.raises(StorageError, match="do not fit"):
        load_data("mnist:ci=1", root=tmp_path)


def test_an_idx_file_has_any_number_of_dimensions(tmp_path):
    array = read_idx(b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef", tmp_path)
    assert array.tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize("header", [b"", jpeg((0, 0, 0))[:20]])
def test_packed_jpeg_images_are_decoded_once(tmp_path, monkeypatch, header):
    for part, count in (("train", 40), ("test", 20)):
        write_pack(tmp_path / "cifar10" / f"{part}_jpeg.npz", count, header)
    data = load_data("cifar10-jpeg:normalize=raw", root=tmp_path)
    assert rows(data.test) == ([float(i) for i in range(20)], [i % 10 for i in range(20)])
    assert sorted(rows(data.train)[0] + rows(data.valid)[0]) == list(range(40))
    assert "JPEG pixels" in data.description

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifar, "_decode", never)
    again = load_data("cifar10-jpeg:normalize=raw", root=tmp_path)
    assert rows(again.test) == rows(data.test)
    # Another pack is another content, not the cached one.
    write_pack(tmp_path / "cifar10" / "test_jpeg.npz", 10, header)
    with pytest.raises(AssertionError, match="decoded again"):
        load_data("cifar10-jpeg", root=tmp_path)


def test_missing_and_damaged_packs(tmp_path):
    with pytest.raises(StorageError, match=r"train_jpeg.npz.*is not there"):
        load_data("cifar10-jpeg", root=tmp_path)
    path = tmp_path / "ci" / "cifar10" / "train_jpeg.npz"
    write_pack(path, 20)
    content = dict(np.load(path))
    for change in (
        {"offsets": content["offsets"][:-1]},  # one image less than labels
        {"data": content["data"][:500]},
    ):
        np.savez(path, **{**content, **change})
        with pytest.raises(StorageError, match="the pack is damaged"):
            load_data("cifar10-jpeg:ci=1", root=tmp_path)
    np.savez(path, data=content["data"])
    with pytest.raises(StorageError, match="the pack is damaged"):
        load_data("cifar10-jpeg:ci=1", root=tmp_path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(StorageError, match="the pack is damaged"):
        load_data("cifar10-jpeg:ci=1", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers102"])
def test_absent_official_files_say_how_to_get_them(tmp_path, name):
    with pytest.raises(StorageError, match=r"(?i)is not there.*download=True"):
        load_data(name, root=tmp_path)


class FakeCifar:
    """Stands for torchvision's class, whose files carry checksums."""

    base_folder = "cifar-batches"

    def __init__(self, root, train, download):
        assert not download
        self.root = root
        count = 200 if train else 100
        values = np.arange(count, dtype=np.uint8)
        self.data = np.tile(values[:, None, None, None], (1, 32, 32, 3))
        self.targets = (np.arange(count) % 100).tolist()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", ["", "beside"])
def test_official_cifar_is_torchvisions(tmp_path, monkeypatch, name, inside):
    monkeypatch.setattr(datasets, name.upper(), FakeCifar)
    folder = tmp_path / name if inside else tmp_path
    (folder / FakeCifar.base_folder).mkdir(parents=True)
    data = load_data(f"{name}:normalize=raw", root=tmp_path)
    assert data.classes == int(name[5:])
    assert rows(data.test)[0] == [float(i) for i in range(100)]
    assert sorted(rows(data.train)[0] + rows(data.valid)[0]) == list(range(200))


def test_a_folder_of_classes(tmp_path):
    write_folder(tmp_path / "pets", ["train", "test"])
    spec = "imagefolder:pets:size=8,normalize=raw,workers=1"
    data = load_data(spec, root=tmp_path, batch_size=7)
    train, valid, test = (rows(part) for part in (data.train, data.valid, data.test))
    assert sorted(train[0] + valid[0]) == list(range(20))
    assert sorted(valid[1]) == [0, 1]
    assert test == ([float(i) for i in range(20)], [0] * 10 + [1] * 10)
    assert (data.classes, data.input_shape) == (2, (3, 8, 8))


def test_a_folder_with_its_own_validation_set(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", ["train", "val", "test"])
    monkeypatch.chdir(tmp_path)  # relative to here, when the data root has no such folder
    data = load_data("imagefolder:a:size=8", root=tmp_path / "nowhere")
    assert [len(part.examples) for part in (data.train, data.valid, data.test)] == [20, 20, 20]
    assert all("val" in path.parts for path in data.valid.examples.images.paths)


def test_a_folder_as_imagenets_tests_on_val(tmp_path):
    write_folder(tmp_path / "b", ["train", "val"])
    data = load_data(f"imagefolder:{tmp_path / 'b'}:size=8", root=tmp_path)
    assert [len(part.examples) for part in (data.train, data.valid, data.test)] == [18, 2, 20]
    assert all("train" in path.parts for path in data.valid.examples.images.paths)


def test_a_folder_that_is_not_one(tmp_path):
    with pytest.raises(StorageError, match="train"):
        load_data("imagefolder:absent", root=tmp_path)
    write_folder(tmp_path / "c", ["train"])
    with pytest.raises(StorageError, match="test"):
        load_data("imagefolder:c", root=tmp_path)
    write_folder(tmp_path / "c", ["test"], classes=("cat", "cow"))
    with pytest.raises(StorageError, match="cow, dog"):
        load_data("imagefolder:c", root=tmp_path)


def test_flowers_have_an_official_validation_set(tmp_path, monkeypatch):
    write_folder(tmp_path / "f", ["train", "val", "test"], count=3)

    class FakeFlowers:
        def __init__(self, root, split, download):
            assert not download
            self._image_files = sorted((tmp_path / "f" / split).rglob("*.png"))
            self._labels = [0] * 3 + [1] * 3

    monkeypatch.setattr(datasets, "Flowers102", FakeFlowers)
    data = load_data("flowers102:size=8", root=tmp_path)
    assert [len(part.examples) for part in (data.train, data.valid, data.test)] == [6, 6, 6]
    for part, name in ((data.train, "train"), (data.valid, "val"), (data.test, "test")):
        assert all(name in path.parts for path in part.examples.images.paths)
    assert data.classes == 102
    swapped = load_data("flowers102:size=8,swap=1", root=tmp_path)
    parts = ((swapped.train, "test"), (swapped.valid, "val"), (swapped.test, "train"))
    for part, name in parts:
        assert all(name in path.parts for path in part.examples.images.paths)
    assert "swapped" in swapped.description and "swapped" not in data.description


def test_data_sets_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    for spec in ("mnist", "cifar10", "flowers102"):
        with pytest.raises(CompressionError, match="needs torchvision"):
            load_data(spec, root=tmp_path)


def test_flowers_without_scipy(tmp_path, monkeypatch):
    def no_scipy(*_, **__):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(datasets, "Flowers102", no_scipy)
    with pytest.raises(CompressionError, match="needs scipy"):
        load_data("flowers102", root=tmp_path)
