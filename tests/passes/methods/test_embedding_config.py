"""The configuration of the architecture search: what is allowed, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from energy_model.errors import ArgumentError
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.ladder import Ladder

REFUSED = {
    "steps": [0, 2.5, True],
    "batch": [0, None],
    "keep": [0, 161, 1.5],
    "fidelity": [(), (3, 1), (1, 1), (-1, 2), (1, 2.5), "1", None, True, (True, 3)],
    "eta": [1, 2.5],
    "probes": [-1, 1.5],
    "surrogate": ["gp", None, ["random"]],
    "metric": ["", (), ("params", "params"), ("params", 3), None, 3],
    "composite": [1, "yes"],
    "policy": ["layer", None],
    "kernels": [0, "8"],
    "pool": [0, 1e3],
    "encoder": ["", 3],
    "importance": ["gamma", None],
    "distill": ["mse", True],
    "distill_weight": [-0.1, 1.1, None, True],
    "temperature": [0, -1, float("nan")],
    "optimizer": ["lion", None],
    "lr": [-1, float("inf"), "fast"],
    "weight_decay": [-1, None],
    "bn_batches": [-1, 2.0],
    "workers": [0, 1.5],
    "address": ["", 6379],
}


def test_every_field_has_values_that_are_refused():
    assert set(REFUSED) == {field.name for field in dataclasses.fields(EmbeddingSearch)}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in REFUSED.items() for v in vs])
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ArgumentError) as error:
        EmbeddingSearch(**{field: value})
    assert error.value.where == f"EmbeddingSearch.{field}"
    assert "Allowed: " in error.value.remedy


def test_it_survives_json():
    config = EmbeddingSearch(
        steps=2, fidelity=(0, 2), metric=("macs", "energy"), distill=None, encoder="a/b", workers=3
    )
    again = EmbeddingSearch.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert (again.fidelity, again.metric) == ((0, 2), ("macs", "energy"))
    assert EmbeddingSearch.from_dict(EmbeddingSearch().to_dict()) == EmbeddingSearch()


def test_the_defaults_are_those_of_the_issue():
    config = EmbeddingSearch()
    assert (config.steps, config.batch, config.keep, config.fidelity) == (20, 8, 4, (1, 3, 10))
    assert (config.surrogate, config.metric, config.composite) == ("embedding", "params", True)
    assert (config.policy, config.kernels, config.pool) == ("free", 8, 1000)
    assert (config.distill, config.temperature) == ("kl", 4.0)
    assert (config.optimizer, config.lr, config.weight_decay) == ("adam", 1e-3, 5e-4)
    assert config.ladder == Ladder((1, 3, 10), 3, 16)


def test_short_forms():
    assert EmbeddingSearch(fidelity=10).ladder == Ladder((10,), 3, 16)
    assert EmbeddingSearch(fidelity=[1, 3]).fidelity == (1, 3)
    assert EmbeddingSearch(encoder=Path("a") / "b").encoder == str(Path("a") / "b")
    assert EmbeddingSearch().metrics == ("params",)
    assert EmbeddingSearch(metric=["params", "macs"]).metrics == ("params", "macs")


def test_not_more_are_kept_than_there_are():
    assert EmbeddingSearch(steps=2, batch=2).keep == 4
    with pytest.raises(ArgumentError, match="4 is not allowed"):
        EmbeddingSearch(steps=1, batch=3)
