"""Training through the rounding: when scales move, what a resumed run has, what comes out."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from quantize_problem import batches, costs_of, graph_of, inputs, limits_of, method_of, net
from torch import nn

from passes.methods.base import Run
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.phases import Phase
from passes.quantize.weights import encodings_of

STEPS, EPOCHS = 5, 4
TARGETS = torch.arange(16) % 4


class Training:
    """A prepared method, its model, and a loop as `transform` runs it."""

    def __init__(self, **options):
        self.model = net().train()
        self.graph = graph_of(self.model)
        self.method = method_of(**{"weights": 3} | options)
        run = Run(one_shot=False, total_steps=STEPS * EPOCHS, batches=batches)
        limits = limits_of(self.graph, "weight_bits<=100%")
        plan = self.method.plan(self.graph, costs_of(self.graph), limits, one_shot=False)
        self.method.prepare(self.graph, plan, run)
        self.run, self.step = run, 0
        parameters = self.graph.module.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def scales(self):
        return {n: e.scale.clone() for n, e in encodings_of(self.graph).items()}

    def train(self, first, last):
        """Epochs as the training loop numbers them; returns the scales after each."""
        found = []
        self.graph.graph_module.train()
        if first == 0:
            self.method.on_phase_start(Phase())
        for epoch in range(first, last):
            for _ in range(STEPS):
                self.step += 1
                output = self.graph.runnable(inputs(16, seed=100 + self.step))
                loss = nn.functional.cross_entropy(output, TARGETS)
                self.optimizer.zero_grad()
                self.method.on_loss(loss, None, output).backward()
                self.method.on_gradients(self.optimizer)
                self.optimizer.step()
                self.method.on_step(self.step, self.optimizer)
            self.method.on_epoch(epoch, self.optimizer)
            found.append(self.scales())
        return found

    def state(self):
        parts = (self.graph.runnable, self.method, self.optimizer)
        return copy.deepcopy([*(part.state_dict() for part in parts), self.step])

    def load(self, state):
        self.graph.runnable.load_state_dict(state[0])
        self.method.load_state_dict(state[1])
        self.optimizer.load_state_dict(state[2])
        self.step = state[3]

    def finished(self):
        self.method.finalize(self.graph, self.run)
        return {k: v.clone() for k, v in self.graph.runnable.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_scales_follow_the_weights_until_the_last_steps():
    training = Training()
    start = training.scales()
    after = training.train(0, EPOCHS)
    assert not same(start, after[0])
    assert not same(after[0], after[1])
    # 15 of 20 steps are beyond 70 %: from there on nothing moves.
    assert same(after[1], after[2])
    assert same(after[2], after[3])
    assert same({n: e.scale for n, e in training.graph.encodings.items()}, after[3])


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("options", "moves"), [({"refit": False}, 0), ({"hold": 0.0}, 4), ({"hold": 1.0}, 0)]
)
def test_when_they_move_can_be_told(options, moves):
    training = Training(**options)
    scales = [training.scales(), *training.train(0, EPOCHS)]
    assert sum(not same(a, b) for a, b in itertools.pairwise(scales)) == moves


@pytest.mark.parametrize("activations", [8, None])
def test_what_is_trained_is_what_comes_out(activations):
    training = Training(activations=activations)
    before = [p.detach().clone() for p in training.model.parameters()]
    training.train(0, EPOCHS)
    moved = [
        not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True)
    ]
    assert all(moved)
    graph = training.graph
    graph.graph_module.eval()
    expected = graph.runnable(inputs(9))
    training.finished()
    assert torch.equal(graph.runnable(inputs(9)), expected)
    for site in graph.sites:
        graph.encodings[site.name].check(graph.weight(site), site.name)
        assert graph.encodings[site.name].bits == 3


def test_training_lowers_the_loss_of_three_bits():
    training = Training()

    def loss():
        with torch.no_grad():
            seen = [nn.functional.cross_entropy(training.graph.runnable(inputs(16, seed=100 + s)),
                                                TARGETS) for s in range(1, 21)]  # fmt: skip
        return float(torch.stack(seen).mean())

    before = loss()
    training.train(0, EPOCHS)
    assert loss() < before


@pytest.mark.spread(1)
@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("activations", [8, None])
def test_a_resumed_run_is_the_same_bit_for_bit(stop, activations):
    whole = Training(activations=activations)
    whole.train(0, EPOCHS)
    stopped = Training(activations=activations)
    stopped.train(0, stop)
    state = stopped.state()
    resumed = Training(activations=activations)
    with torch.no_grad():  # whatever the second preparation found is replaced
        for value in resumed.graph.runnable.state_dict().values():
            if value.is_floating_point():
                value.add_(0.5)
    resumed.load(state)
    assert same({n: e.scale for n, e in resumed.graph.encodings.items()}, resumed.scales())
    resumed.train(stop, EPOCHS)
    assert same(whole.finished(), resumed.finished())


def test_a_lost_step_would_be_noticed():
    whole, resumed = Training(hold=0.5), Training(hold=0.5)
    whole.train(0, EPOCHS)
    resumed.train(0, 3)
    state = resumed.state()
    resumed.load([state[0], {"step": 0}, *state[2:]])
    resumed.step -= STEPS * 2
    resumed.train(3, EPOCHS)
    assert not same(whole.finished(), resumed.finished())


def test_pruned_weights_stay_pruned_through_training():
    training = Training()
    graph = training.graph
    limits = limits_of(graph, "nonzeros<=30%")
    sparse = MAGNITUDE.build()
    plan = sparse.plan(graph, costs_of(graph), limits, one_shot=False)
    run = Run(one_shot=False, limits=limits, costs=costs_of(graph), total_steps=STEPS * EPOCHS)
    sparse.prepare(graph, plan, run)
    sparse.on_phase_start(Phase())
    training.train(0, EPOCHS)
    sparse.finalize(graph, run)
    training.finished()
    nonzeros = sum(int(torch.count_nonzero(graph.weight(s))) for s in graph.sites)
    assert 0 < nonzeros <= 0.3 * 1296
    for site in graph.sites:
        graph.encodings[site.name].check(graph.weight(site), site.name)
