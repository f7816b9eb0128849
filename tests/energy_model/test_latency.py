"""Latency from widths: lookup, bilinear times, sums, JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from energy_model.latency import HeldOut, LatencyModel, LayerTime

WIDTHS = st.integers(1, 64)
STEPS = LayerTime(
    (1e-6, 0.0, 0.0, 1e-8),
    points=((8, 8, 3e-6), (15, 8, 9e-6), (16, 8, 4e-6), (16, 16, 7e-6)),
)
VECTORS = LayerTime(
    (1.0, 0.0, 0.0, 1.0),
    8,
    (5.0, 2.0, 0.0, 0.0),
    (0.0, 0.0, 3.0, 0.0),
    ((8, 8, 60.0), (9, 8, 99.0)),
)


def model(more=None, **changes):
    more = more or {}
    layers = {"conv": LayerTime((1e-6, 2e-8, 3e-8, 4e-9)), "fc": STEPS, **more}
    return LatencyModel(**{"layers": layers, "rest": 5e-6, "scale": 0.5, **changes})


@given(WIDTHS, WIDTHS)
def test_a_bilinear_time_is_its_polynomial(inputs, outputs):
    time = LayerTime((1.0, 2.0, 3.0, 4.0))
    assert time.seconds(inputs, outputs) == 1 + 2 * inputs + 3 * outputs + 4 * inputs * outputs


def test_a_table_is_exact_where_it_was_measured_though_it_is_not_monotone():
    for inputs, outputs, seconds in STEPS.points:
        assert STEPS.seconds(inputs, outputs) == seconds
    assert STEPS.seconds(15, 8) > STEPS.seconds(16, 8)


@given(WIDTHS, WIDTHS)
def test_between_measurements_the_correction_stays_within_that_of_the_measured(inputs, outputs):
    bilinear = LayerTime(STEPS.coefficients)
    ratios = [time / bilinear.seconds(i, o) for i, o, time in STEPS.points]
    found = STEPS.seconds(inputs, outputs) / bilinear.seconds(inputs, outputs)
    assert min(ratios) * (1 - 1e-9) <= found <= max(ratios) * (1 + 1e-9)


def test_channels_that_do_not_fill_vectors_cost_more():
    time = LayerTime(VECTORS.coefficients, 8, VECTORS.partial_inputs, VECTORS.partial_outputs)
    assert time.seconds(16, 8) == 1 + 128
    assert time.seconds(15, 8) == 1 + 120 + 5 + 30
    assert time.seconds(16, 7) == 1 + 112 + 21
    assert time.seconds(15, 7) == 1 + 105 + 5 + 30 + 21
    assert time.seconds(15, 8) > time.seconds(16, 8)


def test_a_table_of_vectors_goes_by_widths_of_the_same_kind():
    whole = LayerTime(VECTORS.coefficients, 8, VECTORS.partial_inputs, VECTORS.partial_outputs)
    aligned, not_aligned = 60 / whole.seconds(8, 8), 99 / whole.seconds(9, 8)
    assert VECTORS.seconds(16, 8) / whole.seconds(16, 8) == pytest.approx(aligned, rel=0.1)
    assert VECTORS.seconds(10, 8) / whole.seconds(10, 8) == pytest.approx(not_aligned, rel=0.1)
    assert VECTORS.seconds(9, 8) == 99.0


def test_a_network_is_the_scaled_sum_of_its_layers_and_the_rest():
    found = model()
    widths = {"conv": (3, 8), "fc": (16, 8), "unmeasured": (7, 7)}
    conv = 1e-6 + 2e-8 * 3 + 3e-8 * 8 + 4e-9 * 24
    assert found.layer_seconds("conv", 3, 8) == pytest.approx(conv / 2)
    assert found.predict(widths) == pytest.approx(5e-6 + (conv + 4e-6) / 2)


def test_json_gives_back_an_equal_model():
    whole = model(held_out=HeldOut(0.04, 0.12, 20), about={"machine": "some", "threads": 1})
    for each in (whole, model(), model({"vectors": VECTORS})):
        again = LatencyModel.from_dict(json.loads(json.dumps(each.to_dict())))
        assert again.layers == each.layers
        assert (again.rest, again.scale) == (each.rest, each.scale)
        assert (again.held_out, again.about) == (each.held_out, each.about)
    assert "median 4.0%, worst 12.0% on 20 networks" in str(whole.held_out)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LayerTime((1.0, -1.0, 0.0, 0.0)), "no coefficients"),
        (lambda: LayerTime((1.0, math.nan, 0.0, 0.0)), "no coefficients"),
        (lambda: LayerTime((1.0, 0.0)), "no coefficients"),
        (lambda: LayerTime((1.0, 0, 0, 0), points=((1, 1, 0.0),)), "positive"),
        (lambda: LayerTime((1.0, 0, 0, 0), points=((0, 1, 1.0),)), "positive"),
        (lambda: LayerTime((0.0, 0, 0, 0), points=((1, 1, 1.0),)), "positive"),
        (lambda: LayerTime((1.0, 0, 0, 0), 0), "a step of 0"),
        (lambda: LayerTime((1.0, 0, 0, 0), 8, (-1.0, 0, 0, 0)), "no coefficients"),
        (lambda: model(layers={}), "no model|make no model"),
        (lambda: model(rest=-1.0), "make no model"),
        (lambda: model(scale=math.inf), "make no model"),
        (lambda: model().predict({"conv": (1, 1)}), "no widths of fc"),
        (lambda: model().layer_seconds("pool", 1, 1), "'pool'"),
        (lambda: LatencyModel.from_dict({"config": "BilinearModel"}), "BilinearModel"),
        (lambda: LatencyModel.from_dict({**model().to_dict(), "version": 2}), "version 2"),
        (lambda: LatencyModel.from_dict({**model().to_dict(), "layers": {"a": {}}}), "malformed"),
        (lambda: LatencyModel.from_dict({**model().to_dict(), "layers": None}), "malformed"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(ArgumentError, match=says):
        make()
