"""The process against closed forms in numpy, N refits for leaving one out, and its own limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.embedding.gaussian_process import (
    NOISE_FLOOR,
    FixedKernel,
    GaussianProcess,
    median_distance,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def points(seed, count=20, dimensions=5):
    return torch.randn(count, dimensions, generator=seeded(seed), dtype=torch.float64)


def targets_of(inputs, seed=0):
    noise = torch.randn(len(inputs), generator=seeded(seed), dtype=torch.float64)
    return 0.7 + 0.2 * torch.sin(inputs[:, 0]) + 0.02 * noise


def parameters_of(process):
    """Length scale, noise, and mean, all in the unit of the targets."""
    constant = dict(process.state_dict())["mean.constants"][-1] if process.fixed is None else 0.0
    return process.length_scale, process.noise, float(constant) * process.scale + process.shift


def closed_form(process, inputs, targets, queries):
    """Posterior of the rows of `queries`: numpy, an inverse, nothing clever."""
    scale, noise, mean = parameters_of(process)
    a, q, y = inputs.numpy(), queries.numpy(), targets.numpy()

    def kernel(left, right):
        squared = ((left[:, None] - right[None]) ** 2).sum(-1)
        return process.scale**2 * np.exp(-squared / (2 * scale**2))

    inverse = np.linalg.inv(kernel(a, a) + noise * np.eye(len(a)))
    cross = kernel(q, a)
    variance = process.scale**2 - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    return mean + cross @ inverse @ (y - mean), np.sqrt(variance)


def conditioned(seed=0, fixed=None, count=20):
    inputs = points(seed, count)
    targets = targets_of(inputs, seed)
    process = GaussianProcess(5, fixed=fixed)
    process.start(inputs)
    with torch.no_grad():  # as if something had been learned
        for parameter in process.parameters():
            parameter.add_(0.2)
    process.condition(inputs, targets)
    return process, inputs, targets


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_the_closed_form(seed):
    process, inputs, targets = conditioned(seed)
    queries = points(seed + 100, 600)  # more than one block
    mean, std = process.posterior(queries)
    expected_mean, expected_std = closed_form(process, inputs, targets, queries)
    assert np.abs(mean.numpy() - expected_mean).max() < 1e-10
    assert np.abs(std.numpy() - expected_std).max() < 1e-10


def test_the_closed_form_tells_another_length_scale():
    process, inputs, targets = conditioned()
    queries = points(100)
    mean, _ = process.posterior(queries)
    process.start(2 * inputs)
    expected, _ = closed_form(process, inputs, targets, queries)
    assert np.abs(mean.numpy() - expected).max() > 1e-4


def test_without_noise_the_posterior_runs_through_the_points():
    for beta, distance in ((1e-3, 1e-1), (1e-6, 1e-4), (1e-9, 1e-7)):
        process, inputs, targets = conditioned(fixed=FixedKernel(alpha=2.0, beta=beta))
        mean, _ = process.posterior(inputs)
        assert float((mean - targets).abs().max()) < distance


@pytest.mark.parametrize("fixed", [None, FixedKernel(alpha=2.0)])
def test_leaving_one_out_is_as_many_refits(fixed):
    process, inputs, targets = conditioned(fixed=fixed)
    mean, std = process.leave_one_out()
    noise = process.noise
    found = []
    for left in range(len(inputs)):
        kept = [at for at in range(len(inputs)) if at != left]
        queries = inputs[left : left + 1]
        m, s = closed_form(process, inputs[kept], targets[kept], queries)
        found.append((m[0], math.sqrt(s[0] ** 2 + noise)))
    expected = np.array(found)
    assert np.abs(mean.numpy() - expected[:, 0]).max() < 1e-10
    assert np.abs(std.numpy() - expected[:, 1]).max() < 1e-10


@pytest.mark.parametrize("fixed", [None, FixedKernel(alpha=2.0)])
def test_the_loss_is_minus_the_mean_log_density_of_those_left_out(fixed):
    process, inputs, targets = conditioned(fixed=fixed)
    mean, std = process.leave_one_out()
    z = (targets - mean) / std
    density = -0.5 * math.log(2 * math.pi) - (std / process.scale).log() - 0.5 * z**2
    priors = 0.0
    if fixed is None:
        noise = process.noise / process.scale**2
        priors += float(log_normal(noise, 0.05, 1.5))
        priors += float(log_normal(process.length_scale, median_distance(inputs), 1.0))
    expected = -float(density.mean()) - priors / len(inputs)
    assert process.loss(inputs).item() == pytest.approx(expected, rel=1e-7)


def log_normal(value, centre, spread):
    normal = torch.distributions.LogNormal(math.log(centre), spread)
    return normal.log_prob(torch.tensor(value))


def test_the_paper_counts_noise_in_its_predictions():
    process, _, _ = conditioned(fixed=FixedKernel())
    far = torch.full((1, 5), 100.0, dtype=torch.float64)
    mean, std = process.posterior(far)
    assert float(mean) == pytest.approx(0, abs=1e-12)
    assert float(std) == pytest.approx(math.sqrt(1.05), rel=1e-12)
    assert process.length_scale == pytest.approx(0.1) and process.parameters() == []


def test_far_away_the_learned_process_knows_the_mean_and_the_spread():
    process, _, targets = conditioned()
    far = torch.full((1, 5), 1e3, dtype=torch.float64)
    mean, std = process.posterior(far)
    shift = 0.2 * float(targets.std(correction=0))
    assert float(mean) == pytest.approx(float(targets.mean()) + shift, rel=1e-9)
    assert float(std) == pytest.approx(float(targets.std(correction=0)), rel=1e-9)


@settings(max_examples=10)
@given(factor=st.floats(0.01, 100), shift=st.floats(-10, 10), seed=st.integers(0, 100))
def test_units_of_the_targets_do_not_matter(factor, shift, seed):
    process, inputs, targets = conditioned(seed)
    queries = points(seed + 1)
    mean, std = process.posterior(queries)
    other = GaussianProcess(5)
    other.load_state_dict(process.state_dict())
    other.condition(inputs, factor * targets + shift)
    new_mean, new_std = other.posterior(queries)
    assert torch.allclose(new_mean, factor * mean + shift, rtol=1e-6, atol=1e-9 * factor)
    assert torch.allclose(new_std, factor * std, rtol=1e-5)


def test_a_later_rung_counts_more():
    inputs = points(0)
    truth = targets_of(inputs)
    twice = torch.cat([inputs, inputs])
    early = torch.cat([truth - 0.3, truth])
    rungs = torch.tensor([0] * len(inputs) + [1] * len(inputs))
    process = GaussianProcess(5, rungs=2)
    process.start(inputs)
    process.condition(twice, early, rungs)
    before = float((process.posterior(inputs)[0] - truth).abs().max())
    mixed = GaussianProcess(5)
    mixed.start(inputs)
    mixed.condition(twice, early)
    assert before < 0.3 * float((mixed.posterior(inputs)[0] - truth).abs().max())


def test_every_rung_has_a_mean_of_its_own():
    inputs = points(0)
    process = GaussianProcess(5, rungs=2)
    process.load_state_dict(
        process.state_dict() | {"mean.constants": torch.tensor([7.0, 3.0], dtype=torch.float64)}
    )
    process.condition(inputs, targets_of(inputs))
    far = torch.full((1, 5), 1e3, dtype=torch.float64)
    expected = 3 * process.scale + process.shift  # the last rung's
    assert float(process.posterior(far)[0]) == pytest.approx(expected)


def test_an_early_rung_still_tells_something():
    inputs, queries = points(0, 30), points(1, 30)
    rungs = torch.tensor([1] * 5 + [0] * 25)
    truth = torch.sin(inputs[:, 0])
    process = GaussianProcess(5, rungs=2)
    process.start(inputs)
    process.condition(inputs, truth, rungs)
    few = GaussianProcess(5)
    few.start(inputs)
    few.condition(inputs[:5], truth[:5])
    expected = torch.sin(queries[:, 0])
    errors = [float(((p.posterior(queries)[0] - expected) ** 2).mean()) for p in (process, few)]
    assert errors[0] < 0.8 * errors[1]


def test_equal_points_and_equal_targets_are_no_problem():
    inputs = torch.ones(12, 5, dtype=torch.float64)
    process = GaussianProcess(5)
    process.start(inputs)
    process.condition(inputs, torch.full((12,), 0.4, dtype=torch.float64))
    mean, std = process.posterior(inputs)
    assert torch.allclose(mean, torch.full((12,), 0.4, dtype=torch.float64))
    assert std.isfinite().all() and process.loss(inputs).isfinite()


def test_the_state_gives_the_same_predictions():
    process, inputs, targets = conditioned()
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.add_(0.3)
    again = GaussianProcess(5)
    again.condition(inputs, targets)
    before = again.posterior(points(9))
    again.load_state_dict(process.state_dict())
    after = again.posterior(points(9))
    process.condition(inputs, targets)
    assert all(torch.equal(*pair) for pair in zip(after, process.posterior(points(9)), strict=True))
    assert not torch.equal(before[0], after[0])


def test_the_noise_has_a_floor():
    process, _, _ = conditioned()
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.fill_(-50.0)
    assert process.noise == pytest.approx(NOISE_FLOOR * process.scale**2)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    process, inputs, _ = conditioned()
    process.loss(inputs)
    process.posterior(points(3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_median_distance():
    line = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_distance(line) == 2.0
    assert median_distance(line[:1]) == 1.0
    assert 0 < median_distance(torch.zeros(4, 2)) < 1e-5


@pytest.mark.parametrize(
    ("embeddings", "targets"),
    [
        (torch.zeros(3, 4), torch.zeros(3)),
        (torch.zeros(2, 5), torch.zeros(3)),
        (torch.zeros(0, 5), torch.zeros(0)),
        (torch.zeros(2, 5), torch.tensor([0.0, math.nan])),
        (torch.full((2, 5), math.inf), torch.zeros(2)),
    ],
)
def test_what_is_no_observation_is_refused(embeddings, targets):
    with pytest.raises(ArgumentError):
        GaussianProcess(5).condition(embeddings.double(), targets.double())


def test_bad_arguments_are_refused():
    with pytest.raises(ArgumentError, match="dimensions"):
        GaussianProcess(0)
    with pytest.raises(ArgumentError, match="rungs"):
        GaussianProcess(3, rungs=0)
    with pytest.raises(ArgumentError, match="one rung"):
        GaussianProcess(3, rungs=2, fixed=FixedKernel())
    with pytest.raises(ArgumentError, match="alpha"):
        FixedKernel(alpha=0.0)
    with pytest.raises(ArgumentError, match="another process"):
        GaussianProcess(3).load_state_dict(GaussianProcess(3, rungs=2).state_dict())
    with pytest.raises(ArgumentError, match="rung"):
        inputs = torch.zeros(2, 3, dtype=torch.float64)
        GaussianProcess(3, rungs=2).condition(inputs, inputs[:, 0], torch.tensor([0, 2]))
