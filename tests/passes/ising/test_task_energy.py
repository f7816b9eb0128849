"""Energies of candidates: hand-made numbers, oracles, and what cannot be scored."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.logit_energies import distill, free_energy_nll, margin, margin_prob
from passes.ising.task_energy import combined, energy_scales, logits_of, task_energy

NAN, INF = math.nan, math.inf
LABELLED = (margin, margin_prob, free_energy_nll)
Z = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]])
Y = torch.tensor([0, 2])


def random_logits(seed=0, states=3, samples=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(states, samples, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(samples) % classes


def test_margins_by_hand():
    """Margins 1 and -2: their mean is -0.5, and the authors' energy is ten times ours."""
    found = margin(Z, Y)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.5]
    assert (10 * found).tolist() == [5.0]


def test_ties_have_no_margin():
    assert margin(torch.zeros(1, 2, 3), Y).tolist() == [0.0]


def test_the_runner_up_may_be_far_below():
    """Ten thousand, as the authors subtract, would not be enough here."""
    logits = torch.tensor([[[0.0, -1e6], [-1e6, 0.0]]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [-1e6]


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_all_energies_agree_with_slow_ones(seed):
    logits, y = random_logits(seed)
    temperature = 0.5 + seed % 7
    for state, z in enumerate(logits):
        rows = list(zip(z.tolist(), y.tolist(), strict=True))
        by_hand = -sum(r[k] - max(r[:k] + r[k + 1 :]) for r, k in rows) / len(rows)
        assert float(margin(logits, y)[state]) == pytest.approx(by_hand, abs=1e-12)
        p = [([math.exp(v / temperature) for v in r], k) for r, k in rows]
        p = [([v / sum(e) for v in e], k) for e, k in p]
        by_hand = -sum(r[k] - max(r[:k] + r[k + 1 :]) for r, k in p) / len(rows)
        found = margin_prob(logits, y, temperature)[state]
        assert float(found) == pytest.approx(by_hand, abs=1e-12)
        found = free_energy_nll(logits, y, temperature)[state]
        torch.testing.assert_close(found, F.cross_entropy(z / temperature, y))
        found = distill(logits, logits[0], temperature)[state]
        whole, mine = (torch.softmax(t / temperature, 1) for t in (logits[0], z))
        expected = torch.distributions.kl_divergence(
            torch.distributions.Categorical(whole), torch.distributions.Categorical(mine)
        ).mean()
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_single_precision_is_scored_in_double():
    logits, y = random_logits()
    for function in LABELLED:
        assert function(logits.float(), y).dtype == torch.float64


def test_energies_can_be_derived():
    logits, y = random_logits()
    for function in (*LABELLED, lambda z, _: distill(z, logits[0] + 1)):
        z = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, y), (z,))


@pytest.mark.parametrize("function", LABELLED)
def test_a_candidate_that_is_not_finite_is_the_worst(function):
    logits, y = random_logits()
    expected = function(logits, y)
    for value in (NAN, INF):
        broken = logits.clone()
        broken[1, 0, 0] = value
        found = function(broken, y)
        assert found[1] == INF
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
    with pytest.raises(PreconditionError, match="of no candidate"):
        function(logits * NAN, y)


def test_a_divergence_that_is_not_finite_is_the_worst():
    logits, _ = random_logits()
    broken = logits.clone()
    broken[1, 0, 0] = NAN
    assert (distill(broken, logits[0]) == INF).tolist() == [False, True, False]
    with pytest.raises(PreconditionError, match="of no candidate"):
        distill(logits, logits[0] * NAN)


def test_impossible_classes_do_no_harm():
    logits, y = random_logits()
    logits[:, :, 3] = -INF
    y = y.clamp(max=2)
    for function in LABELLED:
        assert bool(function(logits, y).isfinite().all())
    assert float(distill(logits, logits[0])[0]) == 0.0


@pytest.mark.parametrize("function", LABELLED)
def test_targets_of_one_class_are_refused(function):
    logits, _ = random_logits()
    with pytest.raises(PreconditionError, match="all 5 samples are of class 2"):
        function(logits, torch.full((5,), 2))


@pytest.mark.parametrize("function", LABELLED)
def test_what_is_no_class_is_refused(function):
    logits, y = random_logits()
    for bad in (y.double(), y > 1, y[:-1], F.one_hot(y)):
        with pytest.raises(ArgumentError, match=r"targets: are .* expected classes \(5,\)"):
            function(logits, bad)
    for bad in (y + 1, y - 100):
        with pytest.raises(ArgumentError, match="has the classes 0 to 3"):
            function(logits, bad)


def test_logits_of_one_class_or_shape_are_refused():
    y = torch.tensor([0, 0])
    for function in (*LABELLED, lambda z, _: distill(z, torch.zeros(2, 1))):
        with pytest.raises(PreconditionError, match="a single number for each sample"):
            function(torch.zeros(3, 2, 1), y)
        for shape in ((3, 2, 4, 4), (3, 2), (0, 2, 4), (3, 0, 4)):
            with pytest.raises(ArgumentError, match=r"expected \(states, samples, classes\)"):
                function(torch.zeros(shape), y)
    with pytest.raises(ArgumentError, match=r"\(2, 3\), the candidates' \(5, 4\)"):
        distill(random_logits()[0], torch.zeros(2, 3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, NAN])
def test_temperatures_are_above_zero(temperature):
    with pytest.raises(ArgumentError, match="temperature"):
        task_energy("margin_prob", temperature)


def test_energies_by_name():
    logits, y = random_logits()
    dense = logits[0] + 1.0
    dense[:, 0] = 0
    outputs = [{"logits": z} for z in logits]
    assert torch.equal(task_energy("margin")(outputs, y), margin(logits, y))
    assert torch.equal(task_energy("margin_prob", 2.0)(outputs, y), margin_prob(logits, y, 2.0))
    found = task_energy("free_energy_nll", 3.0)(outputs, y)
    assert torch.equal(found, free_energy_nll(logits, y, 3.0))
    energy = task_energy("distill", 2.0)
    assert energy.needs_dense
    assert torch.equal(energy(outputs, dense=(dense,)), distill(logits, dense, 2.0))
    with pytest.raises(ArgumentError, match="'entropy' is none of"):
        task_energy("entropy")


def test_missing_targets_are_told():
    logits, _ = random_logits()
    with pytest.raises(ArgumentError, match="targets are NoneType"):
        task_energy("margin")(list(logits))
    with pytest.raises(ArgumentError, match="NoneType, which holds no logits"):
        task_energy("distill")(list(logits))


def test_functions_of_the_user():
    logits, y = random_logits()

    def distill(outputs, targets):
        return F.cross_entropy(outputs, targets) if outputs[0, 0] != 7 else NAN

    energy = task_energy(distill)
    assert energy.name == "distill"
    assert not energy.needs_dense
    torch.testing.assert_close(energy(list(logits), y), free_energy_nll(logits, y))
    broken = logits.clone()
    broken[2, 0, 0] = 7
    assert energy(list(broken), y)[2] == INF
    assert task_energy(lambda o, t: 3)(list(logits)).tolist() == [3.0] * 3
    with pytest.raises(PreconditionError, match="of no candidate"):
        task_energy(lambda o, t: NAN)(list(logits), y)
    for bad, what in ((lambda o, t: o, r"\(5, 4\)"), (lambda o, t: "x", "str")):
        with pytest.raises(ArgumentError, match=f"returns {what}, not one number"):
            task_energy(bad)(list(logits), y)


def test_logits_are_the_first_tensor():
    z = torch.ones(2)
    assert all(logits_of(given) is z for given in (z, (z, 1), [z], {"a": z, "b": 0}))
    for bad in (None, (), {}, (3, z)):
        with pytest.raises(ArgumentError, match="no logits"):
            logits_of(bad)


def test_scales_are_those_of_the_population():
    task, ising = torch.tensor([1.0, 3.0, INF]), torch.tensor([5.0, 5.0, 5.0])
    assert energy_scales(task, ising, torch.tensor([2.0])) == (1.0, 1.0, 1.0)
    assert energy_scales(task * 4) == (4.0,)
    # Equal but for rounding.
    assert energy_scales(torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)) == (1.0,)


def test_the_combined_energy_by_hand():
    task, ising = torch.tensor([1.0, INF, 3.0]), torch.tensor([10.0, 20.0, 40.0])
    found = combined(task, ising, 0.5, (2.0, 10.0))
    assert found.dtype == torch.float64
    assert found.tolist() == [1.0, INF, 3.5]
    with pytest.raises(ArgumentError, match="scale"):
        combined(task, ising, 0.5, (0.0, 1.0))
