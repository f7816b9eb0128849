"""Training by the method `joint` in lists of methods, and on layers of odd kinds."""

from __future__ import annotations

import pytest
import torch
from joint_problem import (
    EPOCHS,
    SIZE,
    STEPS,
    Training,
    X,
    attention,
    bits_of,
    costs_of,
    leave,
    limits_of,
    method_of,
    nominal,
    small,
    traced,
)
from torch import nn

from passes.methods.base import Run
from passes.methods.chain import chain_spec
from passes.methods.joint import Joint
from passes.methods.phases import Phase

TOTAL = STEPS * EPOCHS


def trained_chain(first, second, budget):
    """A graph that several methods have trained together."""
    spec, config = chain_spec([first, second])
    graph = traced(small().train(), X)
    limits = limits_of(graph, budget)
    method = spec.build(config)
    run = Run(
        one_shot=False,
        limits=limits,
        costs=costs_of(graph),
        total_steps=TOTAL,
        epoch_steps=STEPS,
    )
    method.observe(graph, run)
    method.prepare(graph, method.plan(graph, costs_of(graph), limits, one_shot=False), run)
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.05, momentum=0.9)
    method.on_phase_start(Phase())
    for step in range(1, TOTAL + 1):
        graph.module.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(graph.module(X), torch.tensor([0, 1]))
        method.on_loss(loss, None, None).backward()
        method.on_gradients(optimizer)
        optimizer.step()
        method.on_step(step, optimizer)
        if step % STEPS == 0:
            method.on_epoch(step // STEPS - 1, optimizer)
    expected = graph.module.eval()(X)
    method.finalize(graph, run)
    return graph, expected


@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_after_a_method_that_prunes_zeros_stay(levels):
    graph, expected = trained_chain(
        "magnitude", Joint(mode="quantize", bits=4, levels=levels), "nonzeros<=40%"
    )
    counts = [int(graph.weight(s).count_nonzero()) for s in graph.sites]
    assert 0 < sum(counts) <= 0.4 * SIZE
    assert set(bits_of(graph).values()) == {4}
    assert torch.equal(graph.module(X), expected)
    for site in graph.sites:
        weight = graph.weight(site)
        assert len(torch.unique(weight)) <= 2**4 + 1
        if levels == "free" and bool(weight.any()):
            # Zeros are coded by their positions: they cost no level.
            assert graph.codebooks[site.name].reserved_zero


class Recurrent(nn.Module):
    """A recurrent layer and a classifier: input `(N, 2, 3, 3)`."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(
            self.lstm(x.flatten(2).unflatten(-1, (3, 3)).transpose(1, 2).flatten(2))[0][:, -1]
        )


@pytest.mark.parametrize("mode", ["both", "quantize"])
def test_recurrent_layers_are_only_pruned_while_they_are_trained(mode):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Recurrent()
    budget = {"both": "weight_bits<=50%", "quantize": "weight_bits<=95%"}[mode]
    training = Training(budget, model=model, mode=mode)
    told = [d.layer for d in training.graph.decisions if d.what == "keeps its type"]
    assert [name.startswith("lstm") for name in told] == [True, True]
    training.train().finished()
    bits = bits_of(training.graph)
    assert all((width == 32) == name.startswith("lstm") for name, width in bits.items())


def test_a_part_that_is_left_alone_does_not_keep_the_others_from_it():
    model = attention()
    graph = traced(model.train(), X)
    parts = [s.name for s in graph.sites if "in_proj" in s.name]
    assert len(parts) > 1
    leave(graph, **{parts[-1]: 1.0})
    limits = limits_of(graph, "weight_bits<=60%")
    method = method_of()
    run = Run(one_shot=False, limits=limits, total_steps=4, epoch_steps=4)
    method.prepare(graph, method.plan(graph, costs_of(graph), limits, one_shot=False), run)
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.05)
    method.on_phase_start(Phase())
    for step in range(1, 5):
        nn.functional.cross_entropy(graph.module(X), torch.tensor([0, 1])).backward()
        optimizer.step()
        method.on_step(step, optimizer)
    method.on_epoch(0, optimizer)
    method.finalize(graph, run)
    assert nominal(graph) <= limits[0].maximum
    assert set(graph.codebooks) == {s.name for s in graph.sites} - {parts[-1]}
    assert bits_of(graph)[parts[-1]] == 32
