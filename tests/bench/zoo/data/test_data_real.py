"""The real data, as the trained weights saw them: accuracies that only the right pixels give."""

from __future__ import annotations

import pytest
import torch

from bench.zoo import lenet5, mlperftiny_resnet8, resnet20
from bench.zoo.data import load_data
from bench.zoo.data_root import data_root

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORM_CACHE", str(tmp_path))


def need(path):
    if not (data_root() / path).exists():
        pytest.skip(f"{data_root() / path} is absent: set TRANSFORM_DATA to the data root")
    return data_root() / path


def trained(model, file):
    model.load_state_dict(torch.load(need(f"weights/{file}"), weights_only=True), strict=True)
    return model.eval()


@torch.inference_mode()
def correct(model, batches):
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)


@pytest.mark.slow
@pytest.mark.parametrize(("resize", "hits"), [("bilinear", 9930), ("pad", 9885)])
def test_lenet5_on_all_of_mnist(resize, hits):
    need("MNIST/raw")
    model = trained(lenet5(), "mnist_lenet5.pt")
    data = load_data(f"mnist:size=32,resize={resize}", batch_size=500)
    # A different order of additions may flip an image on the border between two classes.
    assert abs(correct(model, data.test) - hits) <= 2
    assert [len(part.examples) for part in (data.train, data.valid, data.test)] == [
        54_000,
        6_000,
        10_000,
    ]


@pytest.mark.slow
def test_resnet8_wants_raw_pixels():
    need("ci/cifar10")
    model = trained(mlperftiny_resnet8(), "cifar10_mlperftiny_resnet8.pt")
    data = load_data("cifar10-jpeg:ci=1,normalize=raw", batch_size=500)
    assert correct(model, data.test) / 2000 == pytest.approx(0.755, abs=0.02)


@pytest.mark.slow
def test_resnet20_wants_the_statistics_of_imagenet():
    need("ci/cifar10")
    model = trained(resnet20(), "cifar10_resnet20_jpeg.pt")
    data = load_data("cifar10-jpeg:ci=1,normalize=imagenet", batch_size=500)
    first = [next(iter(data.test))]
    assert correct(model, first) / 500 == pytest.approx(0.8837, abs=0.03)


def test_the_splits_of_the_real_data_share_no_image():
    need("ci/MNIST/raw")
    data = load_data("mnist:ci=1,normalize=none")
    parts = [torch.cat([x for x, _ in part]) for part in (data.train, data.valid, data.test)]
    whole = torch.cat(parts).flatten(1)
    assert len(torch.unique(whole, dim=0)) == len(whole) == 12_000
    valid = torch.cat([y for _, y in data.valid])
    assert valid.bincount().tolist() == [100] * 10
