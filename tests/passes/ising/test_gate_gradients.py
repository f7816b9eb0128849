"""First-order scores of gates, against finite differences and real flips."""

from __future__ import annotations

import pytest
import torch
from scoring_nets import STRUCTURES, built, fingerprint, gated, population
from structure_nets import image

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.gate_gradients import flip_changes, gate_gradients
from passes.ising.logit_energies import free_energy_nll
from passes.ising.loop_scoring import LoopScoring
from passes.isolation import evaluating

Y = torch.tensor([0, 1, 2, 3])


def loss(outputs, targets):
    return free_energy_nll(outputs[None], targets)[0]


def by_differences(gates, row, call, node, step=1e-5):
    values = []
    for sign in (1, -1):
        factors = row.clone()
        factors[node] += sign * step
        with evaluating(gates.module), gates.acting(factors):
            values.append(float(loss(call.fresh()(gates.module), Y)))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", [*STRUCTURES, "Multihead"])
def test_gradients_are_those_of_finite_differences(name):
    gates, _, call = gated(built(name), image(4))
    bits = population(gates, 1)[0]
    found = gate_gradients(gates, bits, call, Y, loss)
    assert found.dtype == torch.float64
    assert found.shape == bits.shape
    row = gates.rows(bits[None])[0].double()
    chosen = torch.randperm(len(bits), generator=torch.Generator().manual_seed(0))[:12].tolist()
    assert {bool(bits[node]) for node in chosen} == {True, False}
    for node in chosen:
        expected = by_differences(gates, row, call, node)
        assert float(found[node]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_a_flip_of_little_effect_is_foreseen():
    """Of a channel that hardly matters the first order is nearly all."""
    gates, graph, call = gated(built("Residual"), image(4))
    with torch.no_grad():
        graph.module.b.weight[:, :3] *= 1e-4
    bits = torch.ones(gates.layout.nodes, dtype=torch.bool)
    start = gates.layout.parts["a"].start
    bits[start + 1] = False
    changes = flip_changes(gate_gradients(gates, bits, call, Y, loss), bits)
    rows = bits.repeat(4, 1)
    for number in range(3):
        rows[number + 1, start + number] ^= True
    energies = free_energy_nll(torch.stack(LoopScoring(gates).outputs(rows, call)), Y)
    found, expected = changes[start : start + 3], energies[1:] - energies[0]
    assert bool((expected != 0).all())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_own_statistics():
    gates, _, call = gated(built("Residual"), image(4))
    bits = population(gates, 1)[0]
    running, batch = (gate_gradients(gates, bits, call, Y, loss, n) for n in ("running", "batch"))
    assert float((running - batch).abs().max()) > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training):
    gates, graph, call = gated(built("Depthwise"), image(4))
    graph.runnable.train(training)
    before = fingerprint(graph.runnable)
    gate_gradients(gates, population(gates, 1)[0], call, Y, loss, "batch")
    with pytest.raises(ZeroDivisionError):
        gate_gradients(gates, population(gates, 1)[0], call, Y, lambda o, y: 1 / 0)
    assert fingerprint(graph.runnable) == before
    assert gates.context.rows is None


def test_in_single_precision_the_sums_are_of_double():
    gates, _, call = gated(built("Residual"), image(4), dtype=torch.float32)
    exact, _, exact_call = gated(built("Residual"), image(4))
    bits = population(gates, 1)[0]
    found = gate_gradients(gates, bits, call, Y, loss)
    expected = gate_gradients(exact, bits, exact_call, Y, loss)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_losses_that_are_none_are_refused():
    gates, _, call = gated(built("Residual"), image(4))
    bits = population(gates, 1)[0]
    for bad in (lambda o, y: o, lambda o, y: 1.0, lambda o, y: o.detach().sum()):
        with pytest.raises(ArgumentError, match="not one number that depends"):
            gate_gradients(gates, bits, call, Y, bad)
    with pytest.raises(ArgumentError, match="norms"):
        gate_gradients(gates, bits, call, Y, loss, "own")
    with pytest.raises(ArgumentError, match="population"):
        gate_gradients(gates, bits[:-1], call, Y, loss)
    with pytest.raises(PreconditionError, match="the loss is not finite"):
        gate_gradients(gates, bits, call, Y, lambda o, y: o.sum() * torch.nan)
    with pytest.raises(PreconditionError, match="gradient of a gate is not finite"):
        gate_gradients(gates, bits, call, Y, lambda o, y: (o.sum() * 0).sqrt())
