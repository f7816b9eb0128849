"""Fitting latency: a known model is found again, outliers do not move it, lookup where it pays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from energy_model.errors import ArgumentError
from energy_model.latency import LatencyModel, LayerTime
from energy_model.latency_fit import TimedNetwork, fit_latency, fit_layer

TRUE = {
    "a": (2e-6, 1e-8, 3e-8, 2e-9),
    "b": (1e-6, 0.0, 5e-8, 1e-9),
    "c": (4e-6, 2e-8, 0.0, 3e-9),
}


def networks(count=30, seed=0, noise=0.0, rest=2e-5, scale=0.8):
    """Networks whose layers a -> b -> c have random widths, and times that a known model has."""
    generator = np.random.default_rng(seed)
    truth = LatencyModel({name: LayerTime(c) for name, c in TRUE.items()}, rest, scale)
    found = []
    for _ in range(count):
        one, two = (int(n) for n in generator.integers(1, 65, size=2))
        widths = {"a": (3, one), "b": (one, two), "c": (two, 10)}
        layers = {name: truth.layers[name].seconds(*pair) for name, pair in widths.items()}
        jitter = 1 + noise * generator.standard_normal(4)
        layers = {n: t * j for (n, t), j in zip(layers.items(), jitter[1:], strict=True)}
        found.append(TimedNetwork(widths, layers, truth.predict(widths) * jitter[0]))
    return found


def test_a_known_model_is_found_again():
    model = fit_latency(networks())
    assert model.held_out.worst < 1e-6
    assert model.held_out.networks == 30
    assert (model.rest, model.scale) == pytest.approx((2e-5, 0.8), rel=1e-5)
    for network in networks(10, seed=1):
        assert model.predict(network.widths) == pytest.approx(network.seconds, rel=1e-6)
    assert model.layers["b"].seconds(20, 30) == pytest.approx(1e-6 + 5e-8 * 30 + 1e-9 * 600)


def test_the_held_out_error_is_that_of_networks_not_fitted_to():
    noisy = fit_latency(networks(40, noise=0.05))
    assert 0.01 < noisy.held_out.median < 0.1
    others = networks(40, seed=9, noise=0.05)
    errors = [abs(noisy.predict(n.widths) / n.seconds - 1) for n in others]
    assert np.median(errors) == pytest.approx(noisy.held_out.median, abs=0.03)


def test_times_by_chance_are_not_predicted_though_a_table_could_repeat_them():
    generator = np.random.default_rng(3)
    times = generator.uniform(1, 9, size=20)
    chance = [
        TimedNetwork(n.widths, {"b": float(time)}, float(time))
        for n, time in zip(networks(20), times, strict=True)
    ]
    assert fit_latency(chance).held_out.median > 0.1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model():
    found = [fit_latency(networks(noise=0.1), seed=4).to_dict() for _ in range(2)]
    assert found[0] == found[1]


def test_a_few_measurements_that_took_far_too_long_do_not_move_the_rest():
    measured = networks()
    slow = {4: 3.0, 11: 2.0, 20: 5.0}
    disturbed = [
        TimedNetwork(
            n.widths,
            {k: t * slow.get(i, 1) for k, t in n.layers.items()},
            n.seconds * slow.get(i, 1),
        )
        for i, n in enumerate(measured)
    ]
    model = fit_latency(disturbed)
    assert model.held_out.median < 1e-3
    assert model.held_out.worst > 0.4
    for network in networks(10, seed=1):
        assert model.predict(network.widths) == pytest.approx(network.seconds, rel=1e-3)


def sawtooth(inputs, outputs):
    """A kernel that is twice as slow where the inputs do not fill its vectors."""
    return 1e-6 * outputs * (1 if inputs % 8 == 0 else 2)


def test_a_layer_that_computes_whole_vectors_is_found_out():
    pairs = [(i, o) for i in (8, 12, 16, 20, 24) for o in (8, 16, 24, 32)] * 2
    widths = np.array(pairs)
    times = np.array([sawtooth(i, o) for i, o in pairs])
    time = fit_layer(widths, times)
    assert time.step == 8
    assert time.points == ()
    assert time.seconds(12, 16) > time.seconds(16, 16)
    assert all(time.seconds(i, o) == pytest.approx(sawtooth(i, o)) for i, o in pairs)
    assert time.seconds(9, 40) == pytest.approx(sawtooth(9, 40))


def test_a_layer_whose_time_follows_no_rule_is_looked_up():
    pairs = [(i, o) for i in (8, 12, 16, 20, 24) for o in (8, 16, 24, 32)] * 3
    chance = dict(zip(pairs, np.random.default_rng(0).uniform(1, 3, size=20), strict=False))
    time = fit_layer(np.array(pairs), np.array([chance[pair] for pair in pairs]))
    assert len(time.points) == 20
    assert all(time.seconds(*pair) == pytest.approx(chance[pair]) for pair in pairs)


def test_a_layer_that_is_bilinear_stays_so():
    generator = np.random.default_rng(0)
    widths = generator.integers(1, 65, size=(30, 2))
    inputs, outputs = widths.T
    times = (1e-6 + 1e-8 * inputs * outputs) * (1 + 0.1 * generator.standard_normal(30))
    found = fit_layer(widths, times)
    assert (found.points, found.step) == ((), 1)


def test_a_layer_that_took_no_time_takes_none():
    measured = [TimedNetwork(n.widths, {**n.layers, "c": 0.0}, n.seconds) for n in networks(8)]
    assert fit_latency(measured).layers["c"].seconds(3, 10) == 0


def test_layers_that_are_not_everywhere_belong_to_the_rest():
    measured = networks(12)
    parts = [
        TimedNetwork(n.widths, {"a": n.layers["a"], "pool": 1e-6}, n.seconds) for n in measured
    ]
    assert set(fit_latency(parts).layers) == {"a"}


def replaced(**changes):
    first, *others = networks(6)
    found = {"widths": first.widths, "layers": first.layers, "seconds": first.seconds, **changes}
    return [TimedNetwork(**found), *others]


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        ([], "0 networks"),
        (networks(1), "1 networks"),
        (replaced(seconds=0.0), "network 0: a time is not"),
        (replaced(seconds=math.nan), "network 0: a time is not"),
        (replaced(layers={"a": -1.0}), "network 0: a time is not"),
        (replaced(layers={"other": 1.0}), "no layer was measured in all"),
    ],
)
def test_bad_input(measured, says):
    with pytest.raises(ArgumentError, match=says):
        fit_latency(measured)


@pytest.mark.parametrize("seed", [2, 4, 11, 18])
def test_where_there_is_nothing_to_correct_there_is_no_table(seed):
    """Of few widths the fit may explain all times by what partial vectors of channels cost."""
    generator = np.random.default_rng(seed)
    widths = generator.choice([8, 12, 16, 24, 31], size=(16, 2))
    vectors, partial = np.ceil(widths / 8).prod(axis=1), (widths % 8 != 0).any(axis=1)
    seconds = 1e-6 * (vectors + 5 * partial) * generator.lognormal(0, 0.1, size=16)
    time = fit_layer(widths, seconds)
    found = [time.seconds(int(i), int(o)) for i, o in widths]
    assert all(math.isfinite(value) and value >= 0 for value in found)
