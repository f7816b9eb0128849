"""Fitting: planted coefficients come back, weighting does what it says, blindness is named."""

from __future__ import annotations

import json
import math
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.bilinear import BilinearModel, Term, chain
from energy_model.bilinear_fit import Fit, fit_bilinear, random_widths
from energy_model.errors import ArgumentError

SMALL_TERMS, SMALL_WIDTHS = chain([("image", 3), ("conv1", 8), ("conv2", 12), ("fc", 10)])


@st.composite
def chains(draw):
    # The two layers around a single hidden width cost in proportion to it alike: see below.
    widths = draw(st.lists(st.integers(4, 300), min_size=2, max_size=7))
    return chain([("image", 3), *((f"layer{i}", w) for i, w in enumerate(widths)), ("last", 10)])


@st.composite
def tied_networks(draw):
    """Layers between few variables, squares and constants among them, no product twice."""
    full_widths = {f"w{i}": draw(st.integers(8, 300)) for i in range(draw(st.integers(1, 4)))}
    pairs = list(combinations_with_replacement([None, *full_widths], 2))[1:]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=8, unique=True))
    return tuple(Term(f"layer{i}", *pair) for i, pair in enumerate(chosen)), full_widths


def planted(terms, full_widths, generator, zeros: bool = False) -> BilinearModel:
    coefficients = generator.uniform(0.1, 1, len(terms))
    if zeros:
        coefficients *= generator.integers(0, 2, len(terms))
    intercept = float(generator.uniform(0.01, 0.1))
    return BilinearModel(intercept, tuple(coefficients), terms, full_widths, "J")


@settings(max_examples=60)
@given(
    form=chains() | tied_networks(),
    seed=st.integers(0, 2**32 - 1),
    zeros=st.booleans(),
    nonnegative=st.booleans(),
    relative=st.booleans(),
)
def test_planted_coefficients_come_back(form, seed, zeros, nonnegative, relative) -> None:
    generator = np.random.default_rng(seed)
    model = planted(*form, generator, zeros)
    samples = random_widths(model.full_widths, 40 * (len(model.terms) + 1), generator)
    fit = fit_bilinear(
        *form,
        samples,
        model.predict_many(samples),
        unit="J",
        nonnegative=nonnegative,
        relative=relative,
        seed=generator,
    )
    found = [fit.model.intercept, *fit.model.coefficients]
    np.testing.assert_allclose(found, [model.intercept, *model.coefficients], rtol=0, atol=1e-8)
    assert not nonnegative or min(found) >= 0
    assert fit.worst_error < 1e-6
    assert (fit.model.terms, fit.model.unit) == (model.terms, "J")
    assert fit.model.full_widths == model.full_widths


def test_planted_coefficients_of_alexnet_size_to_a_millionth() -> None:
    widths = (3, 64, 192, 384, 256, 256, 4096, 4096, 1000)
    terms, full_widths = chain([(f"layer{i}", width) for i, width in enumerate(widths)])
    coefficients = (0.00223, 0.00754, 0.00391, 0.00494, 0.00339, 0.01616, 0.00721, 0.00195)
    model = BilinearModel(0.00248, coefficients, terms, full_widths, "J")
    samples = random_widths(full_widths, 1000, np.random.default_rng(0))
    fit = fit_bilinear(terms, full_widths, samples, model.predict_many(samples), unit="J")
    np.testing.assert_allclose(fit.model.coefficients, coefficients, rtol=1e-6)
    assert fit.model.intercept == pytest.approx(0.00248, rel=1e-6)


def small_data(count: int = 60, noise: float = 0.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    model = planted(SMALL_TERMS, SMALL_WIDTHS, generator)
    samples = random_widths(SMALL_WIDTHS, count, generator)
    values = model.predict_many(samples) * np.exp(noise * generator.standard_normal(count))
    return model, samples, values


def small_fit(samples, values, **options) -> Fit:
    return fit_bilinear(
        SMALL_TERMS, SMALL_WIDTHS, samples, values, **{"unit": "J", "seed": 1} | options
    )


def vector(fit: Fit):
    return np.array([fit.model.intercept, *fit.model.coefficients])


def test_errors_are_those_of_the_held_out_samples() -> None:
    _, samples, values = small_data(noise=0.1)
    fit = small_fit(samples, values)
    assert len(fit.held_out) == 12
    assert fit.fitted == 48
    errors = [abs(fit.model.predict(samples[i]) - values[i]) / values[i] for i in fit.held_out]
    assert fit.mean_error == pytest.approx(np.mean(errors), rel=1e-12)
    assert fit.worst_error == pytest.approx(max(errors), rel=1e-12)
    assert 0 < fit.mean_error < fit.worst_error < 0.5


def test_held_out_samples_do_not_touch_the_coefficients() -> None:
    _, samples, values = small_data(noise=0.1)
    fit = small_fit(samples, values)
    spoiled = values.copy()
    spoiled[list(fit.held_out)] *= 100
    again = small_fit(samples, spoiled)
    assert again.model == fit.model
    assert again.mean_error > 0.9
    spoiled = values.copy()
    spoiled[min(set(range(60)) - set(fit.held_out))] *= 100
    assert small_fit(samples, spoiled).model != fit.model


def test_the_seed_decides_the_split() -> None:
    _, samples, values = small_data(noise=0.1)
    assert small_fit(samples, values) == small_fit(samples, values)
    assert small_fit(samples, values).held_out != small_fit(samples, values, seed=2).held_out
    generator = np.random.default_rng(1)
    assert small_fit(samples, values, seed=generator) == small_fit(samples, values)
    assert len(small_fit(samples, values, held_out=0.5).held_out) == 30
    assert len(small_fit(samples, values, held_out=0.001).held_out) == 1


def test_the_unit_does_not_matter() -> None:
    _, samples, values = small_data(noise=0.1)
    for options in ({}, {"relative": False}, {"ridge": 0.1}, {"ridge": 0.1, "nonnegative": False}):
        joules, millijoules = (small_fit(samples, values * f, **options) for f in (1, 1e3))
        np.testing.assert_allclose(vector(millijoules), 1e3 * vector(joules), rtol=1e-9, atol=1e-9)
        assert millijoules.mean_error == pytest.approx(joules.mean_error, rel=1e-9)


def objective(samples, values, fit: Fit, relative: bool, ridge: float = 0.0):
    """What the fit promises to minimise, as a function of intercept and coefficients."""
    kept = sorted(set(range(len(samples))) - set(fit.held_out))
    ones = (1.0,) * len(SMALL_TERMS)
    units = np.eye(len(ones))
    columns = [
        BilinearModel(0.0, tuple(unit), SMALL_TERMS, SMALL_WIDTHS, "J").predict_many(samples)[kept]
        for unit in units
    ]
    measured = values[kept]
    mean = measured.mean()

    def value(x) -> float:
        predicted = x[0] + sum(a * column for a, column in zip(x[1:], columns, strict=True))
        residual = (predicted - measured) / (measured if relative else mean)
        return float(np.mean(residual**2) + ridge * np.sum((np.asarray(x[1:]) / mean) ** 2))

    return value


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_no_step_from_the_solution_is_better(relative, ridge, nonnegative) -> None:
    _, samples, values = small_data(noise=0.3)
    fit = small_fit(samples, values, relative=relative, ridge=ridge, nonnegative=nonnegative)
    value, best = objective(samples, values, fit, relative, ridge), vector(fit)
    for index in range(len(best)):
        for step in (1e-3, -1e-3):
            moved = best.copy()
            moved[index] += step
            if moved.min() >= 0 or not nonnegative:
                assert value(moved) > value(best)


def test_relative_weighting_favours_the_cheap_networks() -> None:
    # An error of 30 % of an expensive network is more joules than one of a cheap network.
    _, samples, values = small_data(noise=0.3, count=200)
    weighted, plain = (small_fit(samples, values, relative=r) for r in (True, False))
    assert not np.allclose(vector(weighted), vector(plain), rtol=1e-3)
    relative, absolute = (objective(samples, values, weighted, r) for r in (True, False))
    assert relative(vector(weighted)) < relative(vector(plain))
    assert absolute(vector(plain)) < absolute(vector(weighted))


def test_a_negative_cost_is_held_back_only_when_asked() -> None:
    terms, full_widths = SMALL_TERMS, SMALL_WIDTHS
    model = BilinearModel(1.0, (0.5, -0.4, 0.5), terms, full_widths, "J")
    samples = random_widths(full_widths, 60, np.random.default_rng(0))
    values = model.predict_many(samples)
    free = small_fit(samples, values, nonnegative=False)
    np.testing.assert_allclose(vector(free), [1.0, 0.5, -0.4, 0.5], atol=1e-9)
    held = small_fit(samples, values)
    assert held.model.coefficients[1] == 0
    assert vector(held).min() >= 0
    assert held.mean_error > free.mean_error


def test_ridge_shrinks_the_layers_but_not_the_intercept() -> None:
    _, samples, values = small_data()
    fits = [small_fit(samples, values, ridge=ridge) for ridge in (0.0, 1.0, 1e6)]
    sums = [sum(fit.model.coefficients) for fit in fits]
    assert sums[0] > sums[1] > sums[2] >= 0
    assert sums[2] < 1e-3
    # With the layers gone, the intercept alone must serve all samples.
    assert fits[2].model.intercept > 0.3 * np.mean(values)


def test_ridge_shares_the_cost_of_layers_that_cannot_be_told_apart() -> None:
    terms = (Term("first", "a", "b"), Term("second", "b", "a"), Term("third", "a", None))
    full_widths = {"a": 16, "b": 16}
    model = BilinearModel(0.1, (0.2, 0.8, 0.3), terms, full_widths, "J")
    samples = random_widths(full_widths, 50, np.random.default_rng(0))
    values = model.predict_many(samples)
    fit = fit_bilinear(terms, full_widths, samples, values, unit="J", ridge=1e-9)
    np.testing.assert_allclose(fit.model.coefficients, [0.5, 0.5, 0.3], atol=1e-4)
    with pytest.raises(ArgumentError, match="apart: first and second"):
        fit_bilinear(terms, full_widths, samples, values, unit="J")


def test_every_group_that_cannot_be_told_apart_is_named() -> None:
    terms = (
        Term("one", "a", None),
        Term("fixed", "thin", None),
        Term("two", None, "a"),
        Term("free", "a", "b"),
    )
    full_widths = {"a": 16, "b": 16, "thin": 1}
    samples = random_widths(full_widths, 50, np.random.default_rng(0))
    with pytest.raises(ArgumentError) as caught:
        fit_bilinear(terms, full_widths, samples, [1.0] * 50, unit="J")
    assert caught.value.what == (
        "the samples cannot tell these terms apart: the intercept and fixed; one and two"
    )


def test_the_two_layers_around_a_single_hidden_width_are_one_term() -> None:
    terms, full_widths = chain([("pixels", 784), ("hidden", 100), ("classes", 10)])
    samples = random_widths(full_widths, 50, np.random.default_rng(0))
    with pytest.raises(ArgumentError, match="apart: hidden and classes"):
        fit_bilinear(terms, full_widths, samples, [1.0] * 50, unit="J")


def test_widths_that_always_move_together_are_named() -> None:
    samples = [{"conv1": n, "conv2": n} for n in (1, 2, 3, 4, 5, 6, 7, 8)] * 4
    terms = (
        Term("conv1", None, "conv1"),
        Term("conv2", "conv1", "conv2"),
        Term("fc", "conv2", None),
    )
    with pytest.raises(ArgumentError, match="apart: conv1 and fc"):
        fit_bilinear(terms, {"conv1": 8, "conv2": 8}, samples, [1.0] * 32, unit="J")


def test_too_few_samples() -> None:
    _, samples, values = small_data(4)
    with pytest.raises(ArgumentError, match="3 fitted samples cannot determine 4 coefficients"):
        small_fit(samples, values)
    assert small_fit(samples, values, ridge=1e-3).fitted == 3
    assert small_fit(*small_data(5)[1:]).fitted == 4
    for count in (0, 1):
        with pytest.raises(ArgumentError, match=f"{count} samples cannot be split"):
            small_fit(samples[:count], values[:count], ridge=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, None, True, "1"])
def test_a_measurement_that_is_no_positive_number_is_refused(value) -> None:
    _, samples, values = small_data()
    for relative in (True, False):
        with pytest.raises(ArgumentError, match="measurement 7 is"):
            small_fit(samples, [*values[:7], value, *values[8:]], relative=relative)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ridge": -1.0}, "ridge: the weight is -1.0"),
        ({"ridge": math.nan}, "the weight is nan"),
        ({"held_out": 0.0}, "a share of 0.0"),
        ({"held_out": 1.0}, "a share of 1.0"),
        ({"held_out": math.nan}, "a share of nan"),
        ({"seed": -1}, "the seed is -1"),
        ({"unit": ""}, "the unit is ''"),
    ],
)
def test_wrong_options_are_refused(options, words: str) -> None:
    _, samples, values = small_data()
    with pytest.raises(ArgumentError, match=words):
        small_fit(samples, values, **options)


def test_samples_that_do_not_fit_are_refused() -> None:
    _, samples, values = small_data()
    with pytest.raises(ArgumentError, match="59 measured values for 60 samples"):
        small_fit(samples, values[:-1])
    with pytest.raises(ArgumentError, match="widths 3: unknown width conv9"):
        small_fit([*samples[:3], samples[3] | {"conv9": 1}, *samples[4:]], values)
    with pytest.raises(ArgumentError, match="widths 0: no width of conv2"):
        small_fit([{"conv1": 1}, *samples[1:]], values)
    with pytest.raises(ArgumentError, match="terms: unknown width conv2"):
        fit_bilinear(SMALL_TERMS, {"conv1": 8}, samples, values, unit="J")


def test_a_fit_as_json() -> None:
    fit = small_fit(*small_data(noise=0.1)[1:])
    data = json.loads(json.dumps(fit.to_dict()))
    assert BilinearModel.from_dict(data["model"]) == fit.model
    assert data["mean_error"] == fit.mean_error
    assert data["worst_error"] == fit.worst_error
    assert tuple(data["held_out"]) == fit.held_out
    assert data["fitted"] == 48


def test_random_widths_are_uniform_from_one_to_full() -> None:
    full_widths = {"a": 4, "b": 1, "c": 1000}
    rows = random_widths(full_widths, 4000, np.random.default_rng(0))
    assert len(rows) == 4000
    assert all(list(row) == list(full_widths) for row in rows)
    assert all(type(width) is int for row in rows for width in row.values())
    counts = [sum(row["a"] == width for row in rows) for width in range(6)]
    assert counts[0] == counts[5] == 0
    # Five standard deviations of a binomial around a quarter.
    assert all(abs(count - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for count in counts[1:5])
    assert {row["b"] for row in rows} == {1}
    assert abs(np.mean([row["c"] for row in rows]) - 500.5) < 25
    assert rows == random_widths(full_widths, 4000, np.random.default_rng(0))
    assert rows != random_widths(full_widths, 4000, np.random.default_rng(1))


def test_random_widths_refuse_what_is_no_count() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="0 networks"):
        random_widths({"a": 4}, 0, generator)
    with pytest.raises(ArgumentError, match="the full width of a is 0"):
        random_widths({"a": 0}, 3, generator)
