"""Proximal steps and duals: the published step, its limits, and a convex problem."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint_oracle import float32s, oracle

from passes.joint.admm import Split
from passes.joint.fit import fit_codebook
from passes.methods.joint.rates import Layer, NominalRate


def randoms(count, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(count)]


def sgd_step(case, weight):
    """One step of torch's own optimizer with the buffer of the case; in place."""
    parameter = torch.nn.Parameter(weight)
    options = {key: case[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD([parameter], **options)
    if case["momentum"]:
        optimizer.state[parameter]["momentum_buffer"] = float32s(case["momentum_buffer"])
    parameter.grad = float32s(case["grad"])
    optimizer.step()
    return parameter.detach()


def test_the_step_after_that_of_the_optimizer_is_the_published_one():
    cases = oracle("prox_step")
    assert len(cases) == 4
    for case in cases:
        weight = sgd_step(case, float32s(case["w"]))
        before = weight.clone()
        Split(float32s(case["v"]), float32s(case["u"])).proximal(weight, case["lr"], case["rho"])
        expected = torch.tensor(case["w_next"], dtype=torch.float64)
        assert torch.allclose(weight.double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(before.double(), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 50), st.floats(1e-4, 10), st.floats(1e-4, 100))
def test_it_is_the_minimum_of_distance_and_step(seed, lr, rho):
    weight, duplicate, dual = (t.double() for t in randoms(3, seed))

    def objective(x):
        near = rho / 2 * (x - duplicate + dual).square().sum()
        return near + (x - weight).square().sum() / (2 * lr)

    found = weight.clone()
    Split(duplicate, dual).proximal(found, lr, rho)
    x = found.clone().requires_grad_()
    [gradient] = torch.autograd.grad(objective(x), x)
    assert gradient.abs().max() <= 1e-10 * (rho + 1 / lr) * (1 + weight.abs().max()) * 10
    for other in (weight, duplicate - dual, found + 0.01, found - 0.01):
        assert objective(found) <= objective(other)


def test_without_weight_it_is_the_optimizers_step_and_with_much_it_is_the_goal():
    weight, duplicate, dual = randoms(3)
    split = Split(duplicate, dual)
    still, gone, half = weight.clone(), weight.clone(), weight.clone()
    split.proximal(still, 0.1, 0.0)
    assert torch.equal(still, weight)
    split.proximal(gone, 0.1, 1e8)
    assert torch.allclose(gone, duplicate - dual, atol=1e-6)
    split.proximal(half, 0.5, 2.0)
    assert torch.allclose(half, (weight + duplicate - dual) / 2)


def test_the_gradient_is_that_of_the_penalty():
    weight, duplicate, dual = randoms(3)
    x = weight.clone().requires_grad_()
    [expected] = torch.autograd.grad(1.5 * (x - duplicate + dual).square().sum(), x)
    assert torch.allclose(Split(duplicate, dual).pull(weight, 3.0), expected)


def test_the_dual_adds_up_exactly_what_is_left():
    weight, duplicate, new, dual = (t.round(decimals=2) for t in randoms(4))
    split = Split(duplicate.clone(), dual.clone())
    goal = split.target(weight)
    assert torch.equal(goal, weight + dual)
    moved = split.update(weight, new)
    assert moved == float((new - duplicate).norm())
    assert torch.equal(split.duplicate, new)
    assert torch.equal(split.dual, dual + (weight - new))
    assert split.residual(weight) == float((weight - new).norm()) > 0


def test_it_begins_at_the_weights_and_does_not_share_them():
    weight = randoms(1)[0]
    split = Split.of(weight)
    assert torch.equal(split.duplicate, weight)
    assert not split.dual.any()
    weight.add_(1)
    assert split.residual(weight) > 1


def test_the_unscaled_dual_stays_when_the_penalty_grows():
    duplicate, dual = randoms(2)
    split = Split(duplicate, dual.clone())
    split.rescale(1.5)
    # Multiplied by rho, the dual is what it was.
    assert torch.allclose(1.5 * split.dual, dual)


# Two layers, the weights of each with their own curvature: 40 + 24 weights.
SIZES, BITS, BUDGET = (40, 24), [2, 3], 70


class Quadratic:
    """A convex loss, sum of a (W - C)^2 / 2, and its best point within the budget by ADMM."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.centre = [torch.randn(n, generator=generator) for n in SIZES]
        self.curvature = [0.2 + 5 * torch.rand(n, generator=generator) for n in SIZES]
        self.rate = NominalRate()
        self.layers = [Layer((b,)) for b in BITS]

    def loss(self, weights):
        rows = zip(self.curvature, weights, self.centre, strict=True)
        return sum(float((a * (w - c).square()).sum()) for a, w, c in rows) / 2

    def sparse(self, weights):
        masks = self.rate.project(weights, BITS, BUDGET, self.layers)
        return [w.masked_fill(~m, 0.0) for w, m in zip(weights, masks, strict=True)]

    @staticmethod
    def quantized(weights):
        return [fit_codebook(w, b).nearest(w) for w, b in zip(weights, BITS, strict=True)]

    def feasible(self, weights):
        """Prune, then quantize what is left."""
        return self.quantized(self.sparse(weights))

    def trained(self, rho, growth, epochs=60, steps=5, lr=0.1):
        """Weights, and the residuals of all epochs."""
        weights = [c.clone() for c in self.centre]
        splits, residuals = [Split.of(w) for w in weights], []
        for _ in range(epochs):
            for _ in range(steps):
                for a, w, c, split in zip(
                    self.curvature, weights, self.centre, splits, strict=True
                ):
                    w.sub_(lr * a * (w - c))
                    split.proximal(w, lr, rho)
            weights = self.sparse(weights)
            goals = [s.target(w) for s, w in zip(splits, weights, strict=True)]
            for split, w, v in zip(splits, weights, self.quantized(goals), strict=True):
                split.update(w, v)
                split.rescale(growth)
            rho *= growth
            parts = [s.residual(w) ** 2 for s, w in zip(splits, weights, strict=True)]
            residuals.append(sum(parts) ** 0.5)
        return weights, residuals


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_convex_problem_comes_to_agree_and_beats_one_shot(seed):
    problem = Quadratic(seed)
    weights, residuals = problem.trained(rho=0.5, growth=1.2)
    assert residuals[-1] < 1e-3 < residuals[0]
    found, once = problem.feasible(weights), problem.feasible(problem.centre)
    for result in (found, once):
        size = sum(b * int((w != 0).sum()) for b, w in zip(BITS, result, strict=True))
        assert size <= BUDGET
    assert problem.loss(found) < problem.loss(once)
    # Without the pull both never agree.
    assert problem.trained(rho=0.0, growth=1.0)[1][-1] > 0.1
