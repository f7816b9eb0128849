"""A package outside the tree adds a method through its entry point, in at most 40 lines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transform_nets import SmallConv, made, nonzeros_of

import transform
from transform.fingerprint import state_digest
from transform.testing import check_method

STRANGER = Path(__file__).parents[1] / "data" / "stranger"


@pytest.fixture
def installed(monkeypatch):
    """The stranger's package on the path, as an installer would put it there."""
    monkeypatch.syspath_prepend(str(STRANGER))
    yield
    sys.modules.pop("stranger", None)


def test_it_takes_at_most_forty_lines():
    files = [path for path in STRANGER.rglob("*") if path.suffix == ".py"]
    assert [path.name for path in files] == ["stranger.py"]
    assert len(files[0].read_text().splitlines()) <= 40


def test_it_is_not_there_until_it_is_installed():
    assert "dice" not in transform.methods()
    with pytest.raises(transform.ArgumentError, match="unknown method 'dice'"):
        transform.compress(torch.nn.Linear(2, 2), "nonzeros<=50%", method="dice")


def test_it_is_listed_with_what_it_serves(installed):
    spec = transform.methods()["dice"]
    assert spec.name == "dice"
    assert spec.serves == {"nonzeros"}
    assert spec.config.__name__ == "RandomPruning"
    assert {"energy", "magnitude"} < set(transform.methods())


@pytest.mark.slow
def test_it_keeps_the_contract(installed):
    check_method("dice")


def test_it_compresses_and_its_seed_matters(installed):
    model, example = made(SmallConv)
    digests = []
    for seed in (0, 0, 1):
        result = transform.compress(
            model, "nonzeros<=30%", example_inputs=example, method="dice", seed=seed
        )
        assert nonzeros_of(result.model) <= result.certificate.rows[0].maximum
        digests.append(state_digest(result.model))
    assert digests[0] == digests[1] != digests[2]
    assert result.method == "dice"


def test_it_is_not_asked_for_what_it_does_not_serve(installed):
    model, example = made(SmallConv)
    match = r"method 'dice' does not serve the limit 'energy'\. These do: bn_gamma, dsr_plus"
    with pytest.raises(transform.UnsupportedBudget, match=match):
        transform.compress(model, "energy<=50%", example_inputs=example, method="dice")
