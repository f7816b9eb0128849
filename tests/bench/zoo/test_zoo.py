"""The models and the data of the zoo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from bench.zoo import digits_batches, digits_cnn, lenet5, train_digits
from bench.zoo.data_root import data_root


def test_lenet5_has_the_shapes_of_the_energy_papers():
    model = lenet5()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    assert shapes == {
        "features.0.weight": (6, 1, 5, 5),
        "features.3.weight": (16, 6, 5, 5),
        "classifier.0.weight": (120, 400),
        "classifier.2.weight": (84, 120),
        "classifier.4.weight": (10, 84),
    }
    assert model(torch.zeros(3, 1, 32, 32)).shape == (3, 10)


@pytest.mark.data
def test_lenet5_loads_the_trained_weights():
    file = data_root() / "weights" / "mnist_lenet5.pt"
    if not file.exists():
        pytest.skip(f"the trained LeNet-5 is not at {file}: set TRANSFORM_DATA to the data root")
    lenet5().load_state_dict(torch.load(file, weights_only=True), strict=True)


def test_the_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFORM_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("TRANSFORM_DATA")
    assert data_root().parts[-2:] == ("shared", "data")


def test_models_are_initialised_by_the_global_generator_alone():
    for make in (lenet5, digits_cnn):
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(torch.cat([p.flatten() for p in make().parameters()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


@pytest.fixture(scope="module")
def batches():
    return digits_batches()


def test_digits_are_split_by_class_without_overlap(batches):
    inputs = [torch.cat([x for x, _ in part]) for part in batches]
    targets = [torch.cat([y for _, y in part]) for part in batches]
    assert [len(y) for y in targets] == [1078, 359, 360]
    whole = torch.cat(targets).bincount(minlength=10)
    for y, share in zip(targets, (0.6, 0.2, 0.2), strict=True):
        assert (y.bincount(minlength=10) - share * whole).abs().max() <= 1
    # The bundled data hold no image twice, so distinct rows prove that the parts are disjoint.
    assert len(torch.unique(torch.cat(inputs).flatten(1), dim=0)) == 1797


def test_digits_are_standardised_by_the_training_part(batches):
    train = torch.cat([x for x, _ in batches[0]])
    assert (train.shape[1:], train.dtype) == ((1, 8, 8), torch.float32)
    assert batches[0][0][1].dtype == torch.int64
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)


def test_digits_follow_the_seed_and_leave_the_global_generator_alone(batches):
    before = torch.get_rng_state()
    again, other = digits_batches(), digits_batches(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again[2][0][0], batches[2][0][0])
    assert not torch.equal(other[2][0][0], batches[2][0][0])
    assert [len(x) for x, _ in digits_batches(batch_size=500)[0]] == [500, 500, 78]


def _accuracy(model, part):
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in part)
    return hits / sum(len(y) for _, y in part)


@pytest.mark.slow
def test_training_reaches_the_accuracy_of_the_demonstration(batches):
    torch.manual_seed(0)
    model = digits_cnn().eval()
    assert _accuracy(model, batches[2]) < 0.5
    state = torch.get_rng_state()
    train_digits(model, batches[0], epochs=8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert _accuracy(model, batches[2]) > 0.97


def test_training_is_reproducible(batches):
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = digits_cnn()
        train_digits(model, batches[0][:2], epochs=1, seed=seed)
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_importing_the_zoo_makes_torchvision_importable():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    code = "import bench.zoo, torchvision.models; print(torchvision.models.alexnet.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "alexnet"
