"""The contract of methods, and lists of methods in which the search stands."""

from __future__ import annotations

import pytest
import torch
from ising_nets import compressed, conv_data

import transform
from energy_model.errors import ArgumentError
from passes.methods.chain import chain_spec
from passes.methods.ising import Ising
from passes.methods.quantize_config import Quantize
from transform.testing import check_method


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("options", "kill"),
    [
        ({}, True),
        ({"search": "de+ls", "energy": "combined"}, False),
        ({"search": "de"}, False),
    ],
    ids=["ratio-de", "combined", "de"],
)
def test_the_contract(options, kill):
    check_method(Ising(generations=5, states=4, **options), kill=kill)


@pytest.mark.parametrize("later", ["quantize", "joint"])
def test_a_search_in_training_stands_before_no_other_method(later):
    for first in ("ising", Ising(search_share=0.25)):
        with pytest.raises(ArgumentError, match="while the model is trained") as error:
            chain_spec([first, later])
        assert "search_share=0" in error.value.remedy
    spec, _ = chain_spec([Ising(search_share=0), later])
    assert spec.name == f"ising+{later}"


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("later", "budget"),
    [
        (Quantize(8, 8), "macs<=60%"),
        pytest.param("joint", "macs<=60%, weight_bits<=10%", marks=pytest.mark.slow),
    ],
)
def test_before_other_methods_it_searches_before_training(later, budget, train):
    first = Ising(search_share=0, generations=5)
    result = compressed(budget=budget, method=[first, later], train=train, epochs=2)
    assert all(row.holds for row in result.certificate.rows)
    assert result.graph.encodings or result.graph.codebooks
    assert result.costs.after.total.weights < 0.8 * result.costs.before.total.weights
    assert any("search by 'margin'" in decision.what for decision in result.decisions)
    x = conv_data(1)[0][0]
    assert torch.isfinite(result.model(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["l2", transform.L1Channels()])
def test_after_another_it_may_search_in_training(first):
    result = compressed(
        budget="macs<=60%", method=[first, Ising(states=4)], train=True, epochs=2
    )  # fmt: skip
    assert result.certificate.holds
