"""Encoder and process together: the gradient, what fitting does, and when it stops."""

from __future__ import annotations

import pytest
import torch

from energy_model.errors import ArgumentError
from passes.embedding.deep_kernel import DeepKernel, Fitting
from passes.embedding.encoder import Encoder, TokenBatch
from passes.embedding.gaussian_process import FixedKernel, GaussianProcess


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sequences(count=12, features=4, seed=0):
    """Random sequences of 3 to 5 layers, and targets that depend on their first column."""
    generator = seeded(seed)
    lengths = torch.randint(3, 6, (count,), generator=generator)
    values = torch.randn(count, 5, features, generator=generator)
    values[torch.arange(5)[None] >= lengths[:, None]] = 0
    targets = torch.tanh(values[:, :, 0].sum(1)).double()
    return TokenBatch(values, lengths), targets


def kernel_of(fixed=None, seed=0, features=4):
    encoder = Encoder(features, hidden=2, generator=seeded(seed))
    return DeepKernel(GaussianProcess(4, fixed=fixed), encoder)


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [None, FixedKernel(alpha=0.5)])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(fixed):
    batch, targets = sequences(4, features=2)
    batch = TokenBatch(batch.values.double(), batch.lengths)
    kernel = kernel_of(fixed, features=2)
    kernel.encoder.double()
    kernel.start(batch)
    kernel.fit(batch, targets, None, Fitting(steps=0))
    weights = list(kernel.encoder.parameters())
    own = kernel.process.parameters()

    def loss(*_):
        return kernel.process.loss(kernel.embed(batch))

    assert torch.autograd.gradcheck(loss, (*weights, *own), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_fitting_lowers_the_loss_and_learns_what_matters():
    batch, targets = sequences(40)
    kernel = kernel_of()
    kernel.start(batch)
    losses = kernel.fit(batch, targets, None, Fitting(steps=60, learning_rate=0.02))
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 0.2
    fresh, truth = sequences(60, seed=1)
    error = float(((kernel.predict(fresh)[0] - truth) ** 2).mean())
    assert error < 0.5 * float(truth.var())


def test_a_fixed_process_learns_through_its_encoder():
    batch, targets = sequences(30)
    kernel = kernel_of(FixedKernel())
    losses = kernel.fit(batch, targets, None, Fitting(steps=30, learning_rate=0.01))
    assert losses[-1] < losses[0]
    assert kernel.process.length_scale == pytest.approx(0.1)


def test_points_need_no_encoder():
    points = torch.randn(30, 3, generator=seeded(), dtype=torch.float64)
    targets = torch.sin(points[:, 0])
    kernel = DeepKernel(GaussianProcess(3))
    kernel.start(points)
    losses = kernel.fit(points, targets, None, Fitting(steps=30, kernel_rate=0.1))
    assert losses[-1] < losses[0]
    assert set(kernel.state_dict()) == {f"process.{n}" for n in kernel.process.state_dict()}


def test_the_paper_stops_when_the_density_settles():
    batch, targets = sequences()
    fixed = Fitting(steps=100, learning_rate=1e-9, weight_decay=0.0, tolerance=1e-3)
    assert len(kernel_of(FixedKernel()).fit(batch, targets, None, fixed)) == 7
    never = Fitting(steps=20, learning_rate=1e-9, weight_decay=0.0)
    assert len(kernel_of(FixedKernel()).fit(batch, targets, None, never)) == 20


def test_one_point_teaches_nothing_but_is_known():
    batch, targets = sequences(1)
    kernel = kernel_of()
    before = kernel.state_dict()
    assert kernel.fit(batch, targets, None, Fitting()) == []
    assert all(torch.equal(before[name], value) for name, value in kernel.state_dict().items())
    assert float(kernel.predict(batch)[0]) == pytest.approx(float(targets))


def test_the_same_fit_twice_has_the_same_bits():
    batch, targets = sequences()
    states = []
    for _ in range(2):
        kernel = kernel_of()
        kernel.start(batch)
        kernel.fit(batch, targets, None, Fitting(steps=5))
        states.append(kernel.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_after_a_fit_points_are_known_where_they_have_moved_to():
    batch, targets = sequences()
    kernel, again = kernel_of(), kernel_of(seed=1)
    kernel.fit(batch, targets, None, Fitting(steps=5, learning_rate=0.05))
    again.load_state_dict(kernel.state_dict())
    again.fit(batch, targets, None, Fitting(steps=0))
    fresh, _ = sequences(seed=1)
    assert torch.equal(torch.stack(kernel.predict(fresh)), torch.stack(again.predict(fresh)))


def test_nothing_is_predicted_of_nothing():
    batch, targets = sequences()
    kernel = kernel_of()
    kernel.fit(batch, targets, None, Fitting(steps=1))
    mean, std = kernel.predict(batch[torch.tensor([], dtype=torch.int64)])
    assert mean.shape == std.shape == (0,)


def test_foreign_states_and_inputs_are_refused():
    batch, targets = sequences()
    points = DeepKernel(GaussianProcess(4))
    for one, state in (
        (kernel_of(), points.state_dict()),
        (points, kernel_of().state_dict()),
        (kernel_of(), kernel_of(features=5).state_dict()),
        (kernel_of(), {**kernel_of().state_dict(), "more.x": torch.zeros(1)}),
    ):
        with pytest.raises(ArgumentError, match="state"):
            one.load_state_dict(state)
    with pytest.raises(ArgumentError, match="wrong kind"):
        points.fit(batch, targets, None, Fitting())
    with pytest.raises(ArgumentError, match="wrong kind"):
        kernel_of().embed(torch.zeros(3, 4))


@pytest.mark.parametrize("change", [{"steps": -1}, {"learning_rate": 0.0}, {"kernel_rate": -1.0}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ArgumentError, match=next(iter(change))):
        Fitting(**change)
