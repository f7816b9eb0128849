"""DeepR on its own: signs, noise, shrinkage, and a walk that keeps its count."""

from __future__ import annotations

import math

import pytest
import torch

from energy_model.errors import ArgumentError
from passes.dynamic.deep_r import (
    first_update_signs,
    noise_size,
    noisy_gradient,
    normal_pairs_at,
    signs,
    signs_at,
    temperature_of,
    walked,
)
from passes.dynamic.drop import flipped
from passes.dynamic.grow import at_random
from passes.dynamic.random_keys import key_of, keys_at, normals
from passes.dynamic.schedule import Piecewise

N = 400
KEY = key_of(5, 0, "w/signs")


def start(count=40):
    """A mask, its signs, and weights that have them."""
    active = at_random(torch.ones(N, dtype=torch.bool), count, key_of(5, 0, "w"))
    sign = signs(KEY, N)
    theta = normals(key_of(5, 0, "theta"), N).abs() * 0.05
    return active, sign, torch.where(active, sign * theta, torch.zeros(N))


def test_signs_are_fixed_and_fair():
    assert torch.equal(signs(KEY, N), signs(KEY, N))
    assert torch.equal(signs(KEY, 100), signs(KEY, N)[:100])
    many = signs(KEY, 100_000)
    assert set(many.tolist()) == {-1.0, 1.0}
    assert abs(float(many.mean())) < 4 / math.sqrt(100_000)


def test_signs_of_some_cells_are_those_of_all():
    cells = torch.tensor([399, 0, 17, 17, 250])
    assert torch.equal(signs_at(KEY, cells), signs(KEY, N)[cells])


def test_normal_numbers_of_a_cell_do_not_depend_on_the_others():
    cells = torch.arange(N) * 977 - 40_000
    first, second = normal_pairs_at(KEY, cells)
    some = torch.tensor([7, 399, 3])
    for whole, part in zip((first, second), normal_pairs_at(KEY, cells[some]), strict=True):
        assert torch.equal(part, whole[some])
    keys = [int(k) % 2**64 for k in keys_at(KEY, cells)]
    radius = [math.sqrt(-2 * math.log(((k >> 32) + 1) / 2**32)) for k in keys]
    angle = [2 * math.pi * (k % 2**32) / 2**32 for k in keys]
    cosine = torch.tensor([r * math.cos(a) for r, a in zip(radius, angle, strict=True)])
    sine = torch.tensor([r * math.sin(a) for r, a in zip(radius, angle, strict=True)])
    torch.testing.assert_close(first, cosine, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, sine, rtol=1e-6, atol=1e-6)


def test_normal_numbers_are_normal_and_the_two_of_a_cell_independent():
    n = 200_000
    pair = torch.stack(normal_pairs_at(key_of(1, 2, "noise"), torch.arange(n))).double()
    for numbers in pair:
        assert abs(float(numbers.mean())) < 4 / math.sqrt(n)
        assert abs(float(numbers.var()) - 1) < 4 * math.sqrt(2 / n)
        assert abs(float((numbers.abs() < 1).double().mean()) - 0.682689) < 4 * 0.47 / math.sqrt(n)
        assert abs(float(numbers.pow(4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(n)
    assert abs(float(torch.corrcoef(pair.square())[0, 1])) < 4 / math.sqrt(n)


def test_without_a_mask_all_are_active():
    weight, nu = normals(key_of(2, 0, "w"), N), normals(key_of(2, 0, "n"), N)
    sizes = {"eta": 0.1, "temperature": 1e-3, "normals": nu}
    everything = torch.ones(N, dtype=torch.bool)
    sign = signs(KEY, N)
    moved = walked(weight, sign, everything, l1=1e-2, **sizes)
    assert torch.equal(walked(weight, sign, l1=1e-2, **sizes), moved)
    assert torch.equal(noisy_gradient(weight, **sizes), noisy_gradient(weight, everything, **sizes))


def test_the_variance_of_a_step_is_two_eta_t():
    n, eta, temperature = 100_000, 0.05, 1e-3
    still, everywhere = torch.zeros(n), torch.ones(n, dtype=torch.bool)
    moved = walked(
        still,
        signs(KEY, n),
        everywhere,
        eta=eta,
        l1=0,
        temperature=temperature,
        normals=normals(key_of(1, 1, "w"), n),
    )
    assert abs(float(moved.var()) / (2 * eta * temperature) - 1) < 0.02
    assert abs(float(moved.mean())) < 4 * noise_size(eta, temperature) / math.sqrt(n)


def test_shrinkage_is_towards_zero_for_both_signs():
    weight, sign = torch.tensor([0.5, -0.5, 0.001, 0.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    active = torch.tensor([True, True, True, False])
    moved = walked(
        weight, sign, active, eta=0.1, l1=0.1, temperature=0, normals=torch.full((4,), 9.0)
    )
    assert torch.allclose(moved, torch.tensor([0.49, -0.49, -0.009, 0.0]))
    assert flipped(moved, sign, active).tolist() == [False, False, True, False]


def test_it_is_the_update_on_theta():
    active, sign, weight = start()
    gradient, nu = normals(key_of(2, 0, "g"), N), normals(key_of(2, 0, "n"), N)
    eta, l1, temperature = 0.05, 1e-2, 1e-4
    theta = sign * weight
    theta = theta - eta * sign * gradient - eta * l1 + math.sqrt(2 * eta * temperature) * nu
    stepped = torch.where(active, weight - eta * gradient, weight)
    found = walked(stepped, sign, active, eta=eta, l1=l1, temperature=temperature, normals=nu)
    assert torch.allclose(found[active], (sign * theta)[active], atol=1e-7)
    assert torch.equal(flipped(found, sign, active), active & (sign * found < 0))
    assert bool(flipped(found, sign, active).any())


def test_nothing_is_dropped_without_noise_and_gradient():
    active, sign, weight = start()
    for _ in range(10):
        weight = walked(
            weight, sign, active, eta=0.0, l1=0.0, temperature=0.0, normals=normals(KEY, N)
        )
        assert not bool(flipped(weight, sign, active).any())


@pytest.mark.slow
def test_a_walk_of_a_thousand_steps_keeps_count_and_signs():
    active, sign, weight = start()
    before, drops = sign.clone(), 0
    temperatures = Piecewise({0: 1e-3, 5: 1e-4, 8: 0.0})
    for step in range(1000):
        weight = walked(
            weight,
            sign,
            active,
            eta=0.05,
            l1=1e-3,
            temperature=temperatures.at(step // 100),
            normals=normals(key_of(5, step, "noise"), N),
        )
        dropped = flipped(weight, sign, active)
        grown = at_random(~active, int(dropped.sum()), key_of(5, step, "grow"))
        drops += int(dropped.sum())
        active = (active & ~dropped) | grown
        weight = torch.where(active & ~grown, weight, torch.zeros(N))
        assert int(active.sum()) == 40
        assert bool((weight * sign >= 0).all())
    assert drops > 100
    assert torch.equal(sign, before)
    assert torch.equal(sign, signs(KEY, N))  # a resumed run draws the same


def test_noise_on_gradients_of_active_connections_only():
    active, _, _ = start()
    gradient, nu = torch.ones(N), normals(key_of(3, 0, "n"), N)
    noisy = noisy_gradient(gradient, active, eta=0.01, temperature=1e-2, normals=nu)
    assert torch.equal(noisy[~active], gradient[~active])
    expected = 1 + math.sqrt(2 * 0.01 * 1e-2) * nu
    assert torch.allclose(noisy[active], expected[active])


def test_a_new_connection_takes_the_sign_of_its_first_update():
    active = torch.tensor([True, True, True, False])
    stored = first_update_signs(torch.tensor([0.3, -0.2, 0.0, 5.0]), active)
    assert stored.tolist() == [1.0, -1.0, 0.0, 0.0]
    after = torch.tensor([-0.1, -0.3, -0.4, 0.0])
    assert flipped(after, stored, active).tolist() == [True, False, False, False]
    assert first_update_signs(after, active).tolist() == [-1.0, -1.0, -1.0, 0.0]


def test_temperatures_of_the_script():
    sigma, eta = 1e-5, 0.5
    assert math.isclose(noise_size(eta, temperature_of(sigma, eta)), eta * sigma)


@pytest.mark.parametrize(("eta", "temperature"), [(-1, 1), (1, -1), (math.nan, 1), (1, math.inf)])
def test_sizes_of_noise_that_are_none(eta, temperature):
    with pytest.raises(ArgumentError, match="noise_size"):
        noise_size(eta, temperature)
