"""All ways of running candidates agree, and leave no trace."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scoring_nets import STRUCTURES, Counting, Two, built, fingerprint, gated, population, seeded
from slicing import relative_error, shrunk, traced
from structure_nets import Net, image
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import Call, as_call
from passes.ising.agreement import relative_difference
from passes.ising.choose_backend import make_scorings
from passes.ising.fold_scoring import FoldScoring
from passes.ising.loop_scoring import LoopScoring
from passes.ising.memory_cap import MemoryCap
from passes.ising.vmap_scoring import VmapScoring
from passes.rewrite.gate_context import GateContext, LiveGate

NORMS = ("running", "batch")


def shrunk_outputs(graph, groups, call, state, norms):
    """What a really shrunk copy returns."""
    model = shrunk(graph, groups, state).graph_module.eval()
    for part in model.modules():
        if norms == "batch" and isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = part.running_var = None
    with torch.no_grad():
        return call.fresh()(model)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", STRUCTURES)
def test_all_agree_with_a_really_shrunk_model(name):
    gates, _, call = gated(built(name), image(4))
    states = population(gates)
    graph, groups = traced(built(name), image(4))
    for norms in NORMS:
        first, *others = (s.outputs(states, call, norms) for s in make_scorings(gates).values())
        assert len({float(each.sum()) for each in first}) == len(states)
        assert all(relative_difference(found, first) < 1e-12 for found in others)
        for row, found in zip(states[:2], first, strict=False):
            expected = shrunk_outputs(graph, groups, call, gates.layout.state(row), norms)
            assert relative_error(found, expected) < 1e-12


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", STRUCTURES)
def test_all_agree_in_single_precision(name):
    gates, _, call = gated(built(name), image(4), dtype=torch.float32)
    states = population(gates)
    for norms in NORMS:
        first, *others = (s.outputs(states, call, norms) for s in make_scorings(gates).values())
        assert all(relative_difference(found, first) < 1e-5 for found in others)


@pytest.mark.parametrize("name", ["Flat", "Residual"])
def test_own_statistics_are_others_than_the_running_ones(name):
    gates, _, call = gated(built(name), image(4))
    running, batch = (LoopScoring(gates).outputs(population(gates), call, n) for n in NORMS)
    assert relative_difference(running, batch) > 1e-3


@pytest.mark.parametrize("kind", [FoldScoring, VmapScoring])
def test_chunks_do_not_matter(kind):
    gates, _, call = gated(built("Concat"), image(4))
    states = population(gates)
    expected = LoopScoring(gates).outputs(states, call, "batch")
    for chunk in (1, 3, 8, 100):
        found = kind(gates, chunk=chunk).outputs(states, call, "batch")
        assert relative_difference(found, expected) < 1e-12


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training):
    gates, graph, call = gated(built("Depthwise"), image(4))
    states = population(gates)
    gates.set(states[0])
    graph.runnable.train(training)
    graph.module.head.train(not training)
    before = fingerprint(graph.runnable)
    for scoring in make_scorings(gates).values():
        for norms in NORMS:
            scoring.outputs(states, call, norms)
            assert fingerprint(graph.runnable) == before
            assert torch.equal(gates.bits, states[0])
            assert gates.context.rows is None


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", ["loop", "fold", "vmap", "compact"])
@pytest.mark.parametrize("fails", [True, False])
def test_a_model_that_writes_draws_and_raises_is_as_it_was(name, fails):
    gates, graph, call = gated(seeded(Counting), image(4))
    graph.module.train()
    scoring = make_scorings(gates)[name]
    scoring.outputs(population(gates, 2), call)
    before = fingerprint(graph.runnable)
    if name == "compact":  # runs its own copy of the layer
        scoring._shells[True].module.get_submodule("fails").fail = fails
    graph.module.fails.fail = fails
    before = fingerprint(graph.runnable)
    if fails:
        with pytest.raises(RuntimeError, match="the model fails"):
            scoring.outputs(population(gates), call)
    else:
        scoring.outputs(population(gates), call)
    assert fingerprint(graph.runnable) == before
    assert gates.context.rows is None
    assert not gates.context.folded


def test_a_fingerprint_sees_each_kind_of_change():
    """The checks above are no empty ones."""
    gates, graph, call = gated(built("Residual"), image(4))
    seen = [fingerprint(graph.runnable)]
    graph.runnable.train()
    seen.append(fingerprint(graph.runnable))
    graph.runnable(call.args[0])  # running statistics
    seen.append(fingerprint(graph.runnable))
    torch.rand(1)
    seen.append(fingerprint(graph.runnable))
    gates.set(population(gates)[0])
    seen.append(fingerprint(graph.runnable))
    with torch.no_grad():
        graph.module.head.bias[0].add_(1)
    seen.append(fingerprint(graph.runnable))
    assert all(a != b for a, b in pairwise(seen))


def test_random_numbers_are_common_to_all_states():
    gates, _, call = gated(seeded(Counting), image(4))
    states = population(gates, 3)
    for name in ("loop", "compact"):
        scoring = make_scorings(gates)[name]
        alone = [scoring.outputs(state[None], call)[0] for state in states]
        assert relative_difference(scoring.outputs(states, call), alone) == 0


def test_two_inputs_and_any_outputs():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    gates, _, call = gated(seeded(Two), image(4), y)
    calls = [call, Call((call.args[0],), {"y": call.args[1]})]
    states = population(gates)
    expected = LoopScoring(gates).outputs(states, call)
    for scoring in make_scorings(gates).values():
        for each in calls:
            found = scoring.outputs(states, each)
            assert [f["number"] for f in found] == [3] * len(states)
            assert relative_difference(found, expected) < 1e-12
            assert torch.equal(found[1]["plain"], call.args[1] * 2)


def test_equal_states_are_run_once():
    gates, graph, call = gated(built("Residual"), image(4))
    runs = []
    graph.module.head.register_forward_hook(lambda *_: runs.append(1))
    a, b = population(gates, 2)
    found = LoopScoring(gates).outputs(torch.stack([b, a, b, a, a]), call)
    assert len(runs) == 2
    expected = LoopScoring(gates).outputs(torch.stack([a, b]), call)
    assert relative_difference(found, [expected[i] for i in (1, 0, 1, 0, 0)]) == 0


def test_no_states_have_no_outputs():
    gates, _, call = gated(built("Residual"), image(4))
    nothing = torch.zeros(0, gates.layout.nodes, dtype=torch.bool)
    assert LoopScoring(gates).outputs(nothing, call) == []


def test_inputs_that_the_model_changes_are_copies():
    class InPlace(Net):
        def forward(self, x):
            return self.head(torch.relu(self.bn(self.stem(x.mul_(2))))).mean((2, 3))

    gates, _, call = gated(seeded(InPlace), image(4))
    before = call.args[0].clone()
    states = population(gates)
    found = [s.outputs(states, call) for s in make_scorings(gates).values()]
    assert torch.equal(call.args[0], before)
    assert all(relative_difference(f, found[0]) < 1e-12 for f in found)


def test_a_batch_size_read_before_the_first_gate_is_folded_from_the_start():
    class Reads(Net):
        def forward(self, x):
            x = torch.relu(self.stem(x))
            n = x.shape[0]
            return self.head(x).reshape(n, -1)

    gates, _, call = gated(seeded(Reads), image(4))
    scoring = FoldScoring(gates)
    expected = LoopScoring(gates).outputs(population(gates), call)
    assert relative_difference(scoring.outputs(population(gates), call), expected) < 1e-12
    assert scoring._from_start


def test_what_lies_before_the_first_gate_is_computed_once():
    gates, graph, call = gated(built("Residual"), image(4))
    lengths = []
    graph.module.stem.register_forward_hook(lambda _, args, __: lengths.append(len(args[0])))
    graph.module.head.register_forward_hook(lambda _, args, __: lengths.append(len(args[0])))
    FoldScoring(gates, chunk=8).outputs(population(gates), call)
    assert lengths == [4, 32]


def test_channels_in_the_first_dimension_cannot_be_folded():
    context = GateContext(torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(PreconditionError, match="first dimension"):
        LiveGate(torch.arange(3), 0, context)(torch.rand(3, 5))


def test_less_memory_means_fewer_states_at_once():
    gates, _, call = gated(built("Residual"), image(4))
    row = gates.rows(population(gates, 1))[0]
    gates.module.eval()
    many, few, least = (MemoryCap(gates, None, m).states(row, call) for m in (2**24, 2**20, 1))
    assert many > few > least == 1
    # Head and stem read and write most; the stem's input has 3 of the 11 channels.
    assert many >= 2**24 // (2 * 2 * 8 * 4 * 8 * 8 * 8 * 2)


def test_memory_is_measured_once_for_each_shape():
    gates, graph, call = gated(built("Residual"), image(4))
    runs = []
    graph.module.head.register_forward_hook(lambda *_: runs.append(1))
    scoring = FoldScoring(gates, memory=2**26)
    for expected in (2, 3):
        scoring.outputs(population(gates), call)
        assert len(runs) == expected
    scoring.outputs(population(gates), call.map(lambda t: t[:2]))
    assert len(runs) == 5


@pytest.mark.parametrize("name", ["loop", "fold", "vmap", "compact"])
def test_statistics_of_a_single_value_are_refused(name):
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

        def forward(self, x):
            return self.b(F.relu(self.norm(self.a(x))))

    gates, graph, _ = gated(seeded(Vector), torch.rand(4, 3, dtype=torch.float64))
    one = as_call(graph.module, torch.rand(1, 3, dtype=torch.float64))
    before = fingerprint(graph.runnable)
    with pytest.raises(PreconditionError, match="more than 1 value"):
        make_scorings(gates)[name].outputs(population(gates), one, "batch")
    assert fingerprint(graph.runnable) == before


def test_a_candidate_of_nan_is_alone_with_it():
    gates, graph, call = gated(built("Residual"), image(4))
    with torch.no_grad():
        graph.module.a.bias[0] = torch.nan
    states = population(gates)
    states[:, gates.layout.parts["a"].start] = False
    states[2, gates.layout.parts["a"].start] = True
    for scoring in make_scorings(gates).values():
        found = scoring.outputs(states, call)
        assert [bool(each.isnan().any()) for each in found] == [s == 2 for s in range(8)]


def test_populations_and_words_that_do_not_fit_are_refused():
    gates, _, call = gated(built("Residual"), image(4))
    scoring, states = LoopScoring(gates), population(gates)
    for bad in (states[0], states[:, :-1], states.float()):
        with pytest.raises(ArgumentError, match="population"):
            scoring.outputs(bad, call)
    states[3, gates.layout.parts["a"]] = False
    with pytest.raises(ArgumentError, match=r"state 3 keeps fewer units of 'a'"):
        scoring.outputs(states, call)
    with pytest.raises(ArgumentError, match="norms"):
        scoring.outputs(population(gates), call, "own")
