"""The public cost table."""

from __future__ import annotations

import json

import pytest
import torch
from transform_nets import INPUTS, Branching, SmallConv, made, weights_of

import transform
from transform.fingerprint import state_digest


@pytest.mark.parametrize("model_class", INPUTS)
def test_every_weight_has_its_row_and_the_total_is_their_sum(model_class):
    model, example = made(model_class)
    table = transform.analyze(model, example)
    assert sum(row.weights for row in table.rows) == sum(w.numel() for w in weights_of(model))
    assert all(row.nonzeros == row.weights for row in table.rows)
    for name in ("macs", "weights", "nonzeros"):
        assert getattr(table.total, name) == sum(getattr(row, name) for row in table.rows)
    for name in ("weights", "compute", "compute_relaxed", "activations", "exact", "relaxed"):
        parts = [getattr(row.energy, name) for row in table.rows]
        assert getattr(table.total.energy, name) == sum(parts)
        assert all(isinstance(part, int) for part in parts)


def test_the_batch_and_the_values_of_the_example_do_not_matter():
    model, _ = made(SmallConv)
    tables = [
        transform.analyze(model, example)
        for example in (torch.zeros(1, 2, 8, 8), torch.randn(5, 2, 8, 8), torch.ones(2, 2, 8, 8))
    ]
    assert tables[0] == tables[1] == tables[2]
    assert transform.analyze(model, torch.zeros(1, 2, 8, 8), "eyeriss") == tables[0]


def test_the_model_and_the_random_state_are_left_alone():
    model, example = made(SmallConv)
    model.train()
    digest, state = state_digest(model), torch.get_rng_state()
    transform.analyze(model, example)
    assert state_digest(model) == digest
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_table_prints_and_becomes_json():
    table = transform.analyze(*made(SmallConv))
    assert "conv" in str(table)
    assert "total" in str(table)
    data = json.loads(json.dumps(table.to_dict()))
    assert transform.CostTable.from_dict(data) == table


def test_an_opaque_model_says_so_in_its_rows():
    table = transform.analyze(*made(Branching))
    assert all("opaque" in row.note for row in table.rows)


def test_bad_input_is_typed():
    model, _ = made(SmallConv)
    with pytest.raises(transform.ArgumentError, match=r"^model: "):
        transform.analyze(SmallConv, torch.zeros(1, 2, 8, 8))
    with pytest.raises(transform.TraceError, match="fails on the example"):
        transform.analyze(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(transform.PreconditionError, match="no weighted layer"):
        transform.analyze(torch.nn.ReLU(), torch.zeros(1, 2))
    with pytest.raises(transform.HardwareError, match="unknown hardware profile"):
        transform.analyze(model, torch.zeros(1, 2, 8, 8), "tpu")
    with pytest.raises(transform.ArgumentError, match="no tensor"):
        transform.analyze(model, None)
