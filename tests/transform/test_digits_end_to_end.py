"""The whole way on real data: train, compress, export, and check the certificate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import transform
from bench.check_certificate import check
from bench.zoo import digits_batches, digits_cnn, train_digits
from export.parity import open_session

BUDGET = "energy<=50%"
# In one shot the projection by value per energy removes more from the layers whose weights are dear
# than magnitude does, and nothing is trained afterwards: it may lose this much accuracy against it.
MARGIN = 0.15


@pytest.fixture(scope="module")
def digits():
    """A small network, trained for a moment, and its validation and test batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_cnn()
    train, valid, test = digits_batches()
    train_digits(model, train, epochs=8)
    yield model.eval(), valid, test
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(digits):
    model, valid, _ = digits
    return {
        method: transform.compress(
            model, BUDGET, example_inputs=valid[0][0], valid=valid, method=method
        )
        for method in ("energy", "magnitude")
    }


@pytest.fixture(scope="module")
def exported(results, tmp_path_factory):
    return results["energy"].export(tmp_path_factory.mktemp("digits") / "digits.onnx")


def accuracy(run, batches):
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def test_half_the_energy_is_reached_exactly(digits, results):
    for method, result in results.items():
        [row] = result.certificate.rows
        assert result.certificate.holds, method
        assert 0.49 * row.base < row.reached <= 0.5 * row.base
        assert transform.analyze(result.model, digits[1][0][0]).total.energy.relaxed == row.reached


def test_what_was_learnt_is_still_there(digits, results):
    _, valid, test = digits
    assert results["energy"].metrics["before"] > 0.9
    for result in results.values():
        with torch.no_grad():
            assert result.metrics["after"] == pytest.approx(accuracy(result.model, valid))
            assert accuracy(result.model, test) > 0.6  # chance is 0.1
    energy, magnitude = (results[name].metrics["after"] for name in ("energy", "magnitude"))
    assert energy > magnitude - MARGIN


def test_at_equal_energy_the_projection_keeps_more_weights(results):
    kept = {name: r.costs.after.total.nonzeros for name, r in results.items()}
    assert kept["energy"] > kept["magnitude"]


@pytest.mark.slow
def test_the_file_classifies_as_the_model_does(digits, results, exported):
    session, (_, _, test) = open_session(exported.path), digits
    [name] = [item.name for item in session.get_inputs()]

    def run(x):
        return torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))

    assert exported.top1_agreement == 1.0
    with torch.no_grad():
        assert accuracy(run, test) == accuracy(results["energy"].model, test)


def test_the_certificate_stands_on_its_own(results, exported):
    assert check(exported.certificate) == []
    claims = json.loads(exported.certificate.read_text())
    [limit] = claims["limits"]
    assert limit["asked"] == BUDGET
    assert limit["reached"] == results["energy"].certificate.rows[0].reached
    assert claims["file"]["name"] == "digits.onnx"


def test_the_result_is_saved_and_comes_back(results, digits, tmp_path):
    folder = results["energy"].save(tmp_path / "saved")
    loaded, (x, _) = transform.load(folder, digits_cnn()), digits[2][0]
    with torch.no_grad():
        assert torch.equal(loaded.model(x), results["energy"].model(x))
    assert repr(loaded) == repr(results["energy"])
