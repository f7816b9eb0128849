"""The bilinear model: the published TX2 coefficients, its derivative, its JSON, its errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.bilinear import BilinearModel, Term, chain
from energy_model.errors import ArgumentError

ALEXNET = (
    ("image", 3),
    ("conv1", 64),
    ("conv2", 192),
    ("conv3", 384),
    ("conv4", 256),
    ("conv5", 256),
    ("fc6", 4096),
    ("fc7", 4096),
    ("fc8", 1000),
)
TX2_INTERCEPT = 0.0024820673
TX2_COEFFICIENTS = (
    0.0022337078,
    0.0075399503,
    0.0039092554,
    0.0049406695,
    0.0033930999,
    0.0161565151,
    0.0072140638,
    0.0019541800,
)
TIED = (
    Term("stem", None, "stage"),
    Term("block1", "stage", "inner"),
    Term("skip", "stage", "stage"),
    Term("head", "stage", None),
)


def tx2() -> BilinearModel:
    terms, full_widths = chain(ALEXNET)
    return BilinearModel(TX2_INTERCEPT, TX2_COEFFICIENTS, terms, full_widths, "J")


def tied() -> BilinearModel:
    return BilinearModel(0.5, (1.0, 2.0, 4.0, 8.0), TIED, {"stage": 10, "inner": 4}, "s")


@pytest.mark.parametrize(
    ("share", "joules"),
    [(1, 0.0498235), (0.75, 0.0298969), (0.5, 0.0153644), (0.25, 0.0062261), (0, 0.0025182)],
)
def test_energies_of_alexnet_on_a_tx2(share: float, joules: float) -> None:
    model = tx2()
    widths = {name: max(1, math.floor(share * full)) for name, full in model.full_widths.items()}
    assert model.predict(widths) == pytest.approx(joules, abs=5.1e-8)


def test_chain_names_widths_after_the_layers_that_produce_them() -> None:
    terms, full_widths = chain(ALEXNET[:3] + ALEXNET[-1:])
    assert terms == (
        Term("conv1", None, "conv1"),
        Term("conv2", "conv1", "conv2"),
        Term("fc8", "conv2", None),
    )
    assert full_widths == {"conv1": 64, "conv2": 192}


def test_a_single_layer_has_no_variable() -> None:
    terms, full_widths = chain([("pixels", 784), ("fc", 10)])
    assert BilinearModel(1.0, (2.0,), terms, full_widths, "J").predict({}) == 3


def test_tied_widths_are_one_variable() -> None:
    shares = 0.5, 0.25
    widths = {"stage": 5, "inner": 1}
    expected = 0.5 + shares[0] + 2 * shares[0] * shares[1] + 4 * shares[0] ** 2 + 8 * shares[0]
    assert tied().predict(widths) == pytest.approx(expected, rel=1e-15)
    # d/d stage of x + 2 x y + 4 x^2 + 8 x, with x = stage / 10
    slope = (1 + 2 * shares[1] + 8 * shares[0] + 8) / 10
    assert tied().marginal("stage", widths) == pytest.approx(slope, rel=1e-15)
    assert tied().marginal("inner", widths) == pytest.approx(2 * shares[0] / 4, rel=1e-15)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_marginal_is_the_slope_of_predict(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for model in (tx2(), tied()):
        widths = {n: float(generator.uniform(1, full)) for n, full in model.full_widths.items()}
        for name in widths:
            # A difference around the point is exact for a polynomial of degree two.
            above, below = ({**widths, name: widths[name] + step} for step in (0.5, -0.5))
            step = model.predict(above) - model.predict(below)
            assert model.marginal(name, widths) == pytest.approx(step, rel=1e-6)


def test_predict_many_is_predict_of_each() -> None:
    model = tx2()
    generator = np.random.default_rng(0)
    rows = [
        {name: int(generator.integers(1, full + 1)) for name, full in model.full_widths.items()}
        for _ in range(20)
    ]
    many = model.predict_many(rows)
    assert many.shape == (20,)
    np.testing.assert_allclose(many, [model.predict(row) for row in rows], rtol=1e-14)
    assert model.predict_many([]).shape == (0,)


def test_the_order_of_names_does_not_matter() -> None:
    widths = {"inner": 1, "stage": 5}
    assert tied().predict(widths) == tied().predict(dict(reversed(widths.items())))


@pytest.mark.parametrize("model", [tx2(), tied()], ids=["chain", "tied"])
def test_round_trip_through_json(model: BilinearModel) -> None:
    again = BilinearModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model
    assert hash(again) == hash(model)


def test_numbers_of_numpy_become_plain() -> None:
    terms, _ = chain([("image", 3), ("conv", 8), ("fc", 2)])
    coefficients = (np.float32(1), np.float64(2))
    model = BilinearModel(np.float32(0.5), coefficients, terms, {"conv": np.int64(8)}, "J")
    assert BilinearModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model


WIDTHS = {"stage": 5, "inner": 2}


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ({**WIDTHS, "outer": 1}, "widths 0: unknown width outer. The variables are stage, inner"),
        ({"stage": 5}, "no width of inner"),
        ({**WIDTHS, "inner": 0}, "the width of inner is 0"),
        ({**WIDTHS, "inner": -1.5}, "the width of inner is -1.5"),
        ({**WIDTHS, "inner": math.nan}, "the width of inner is nan"),
        ({**WIDTHS, "inner": math.inf}, "the width of inner is inf"),
        ({**WIDTHS, "inner": "2"}, "the width of inner is '2'"),
        ({**WIDTHS, "inner": True}, "the width of inner is True"),
    ],
)
def test_wrong_widths_are_refused(widths, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        tied().predict(widths)
    with pytest.raises(ArgumentError, match=words):
        tied().marginal("stage", widths)


def test_the_row_with_the_wrong_width_is_named() -> None:
    with pytest.raises(ArgumentError, match="widths 1: no width of inner"):
        tied().predict_many([WIDTHS, {"stage": 5}])


def test_marginal_of_an_unknown_variable() -> None:
    with pytest.raises(ArgumentError, match="unknown width skip"):
        tied().marginal("skip", WIDTHS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coefficients": (1.0,)}, "1 coefficients for 4 terms"),
        ({"coefficients": (1.0, 2.0, 3.0, math.nan)}, "not a finite number"),
        ({"intercept": math.inf}, "not a finite number"),
        ({"intercept": "1"}, "not a finite number"),
        ({"unit": ""}, "the unit is ''"),
        ({"unit": 5}, "the unit is 5"),
        ({"terms": ()}, "the layers are"),
        ({"terms": (*TIED[:3], TIED[0])}, "the layers are"),
        ({"full_widths": {"stage": 10}}, "terms: unknown width inner. The variables are stage"),
        ({"full_widths": {}}, "The variables are none"),
        ({"full_widths": {"stage": 10, "inner": 0}}, "the full width of inner is 0"),
        ({"full_widths": {"stage": 10, "inner": 2.5}}, "the full width of inner is 2.5"),
        ({"full_widths": {"stage": 10, "inner": True}}, "the full width of inner is True"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words: str) -> None:
    model = tied()
    parts = {name: getattr(model, name) for name in BilinearModel.__dataclass_fields__}
    with pytest.raises(ArgumentError, match=words):
        BilinearModel(**parts | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": "Fit"}, "this is 'Fit', version 1"),
        ({"version": 2}, "version 2"),
        ({"terms": [{"layer": "stem"}]}, "missing or malformed: 'coefficient'"),
        ({"terms": [{"layer": "stem", "coefficient": 1.0}]}, "missing or malformed"),
        ({"terms": 3}, "missing or malformed"),
        ({"full_widths": [["stage"]]}, "missing or malformed"),
        ({"unit": None}, "the unit is None"),
    ],
)
def test_damaged_json_is_refused(change, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        BilinearModel.from_dict(tied().to_dict() | change)


@pytest.mark.parametrize("field", ["unit", "intercept", "full_widths", "terms", "config"])
def test_a_missing_field_is_refused(field: str) -> None:
    data = tied().to_dict()
    del data[field]
    with pytest.raises(ArgumentError, match=r"missing or malformed|this is None"):
        BilinearModel.from_dict(data)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([("image", 3)], "no input and layers"),
        ([], "no input and layers"),
        ([("image", 3), ("conv", 8), ("conv", 8), ("fc", 10)], "names of their own"),
        ([("image", 0), ("conv", 8), ("fc", 10)], "the full width of image is 0"),
        ([("image", 3), ("conv", 8.0), ("fc", 10)], "the full width of conv is 8.0"),
    ],
)
def test_what_is_no_chain_is_refused(layers, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        chain(layers)
