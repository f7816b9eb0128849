"""The engine: whatever a rule decides, counts hold to the unit and nothing old is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from energy_model.errors import PostconditionError
from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.policies import AtRandom, SmallestOfAll
from passes.dynamic.rule import RULES, Rule
from passes.dynamic.schedule import Clock, Due, Schedule
from passes.dynamic.start import SparseShape, uniform_exact
from passes.dynamic.start_masks import start_masks
from passes.inputs import Call
from passes.rewrite.masks import bake_masks
from passes.tracing.trace import trace

X = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5
MOVING = [name for name, rule in RULES.items() if rule.schedule is not None]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(128, 5)
    )


def built(rule, density=0.3, *, blocks=None, seed=3, model=None):
    graph = trace(model or net(), Call((X,)))
    blocks = blocks or {}
    shapes = [
        SparseShape(s.name, tuple(graph.parameter(s).shape), blocks.get(s.name, 1))
        for s in graph.compressible
    ]
    total = int(density * sum(shape.parameters for shape in shapes))
    counts = uniform_exact(shapes, total)
    parts = zip(graph.compressible, shapes, counts, strict=True)
    members = [Member(*part) for part in parts]
    engine = RewireEngine(graph, members, rule, Clock(50, 4), seed)
    engine.attach(start_masks(counts, shapes, seed))
    return graph, engine


def optimizer_of(graph, kind="sgd"):
    kinds = {
        "sgd": lambda p: torch.optim.SGD(
            p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
        ),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "foreach adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3, foreach=True),
        "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9),
        "adadelta": lambda p: torch.optim.Adadelta(p),
    }
    return kinds[kind](list(graph.module.parameters()))


def step(graph, engine, optimizer, number):
    engine.watch(number)
    loss = nn.functional.cross_entropy(graph.runnable(X), Y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def masks(engine):
    return {m.site.name: engine.mask(m) for m in engine.members}


def active(engine):
    return sum(int(engine.mask(m).sum()) * m.shape.block for m in engine.members)


KINDS = ["sgd", "adamw", "foreach adam", "fused adam", "rmsprop"]


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "sgd") for name in MOVING), *(("rigl", kind) for kind in KINDS[1:])]
)
def test_counts_hold_and_everything_changed_starts_anew(name, kind):
    rule = RULES[name]
    graph, engine = built(rule)
    optimizer, total = optimizer_of(graph, kind), active(engine)
    for number in range(12):
        engine.watch(number)
        if rule.needs:
            for member in engine.members:
                for mask in engine.watched(member):
                    mask.watch(watching=True)
        loss = nn.functional.cross_entropy(graph.runnable(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = masks(engine)
        row = engine.rewire(number, Due(share=0.3), optimizer)
        after = masks(engine)
        assert active(engine) == total
        assert sum(row["dropped"].values()) == sum(row["grown"].values())
        for member in engine.members:
            site = member.site
            old, new = before[site.name], after[site.name]
            assert row["active"][site.name] == int(new.sum()) >= 1
            weight = graph.weight(site).reshape(-1)
            assert bool((weight[~new | ~old] == 0).all())
            for value in optimizer.state[graph.parameter(site)].values():
                if value.shape == graph.parameter(site).shape:
                    assert bool((value.reshape(-1)[old != new] == 0).all())


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adadelta"])
def test_what_is_inactive_stays_exactly_zero(kind):
    graph, engine = built(RULES["rigl"])
    optimizer = optimizer_of(graph, kind)
    step(graph, engine, optimizer, 100)
    engine.rewire(100, Due(share=0.3), optimizer)
    for number in range(101, 121):
        step(graph, engine, optimizer, number)
    for member in engine.members:
        weight = graph.weight(member.site).reshape(-1)
        assert bool((weight[~engine.mask(member)] == 0).all())
        assert bool((weight[engine.mask(member)] != 0).any())


def test_growth_does_not_change_the_function():
    graph, engine = built(RULES["dsr_exact"])
    optimizer = optimizer_of(graph)
    step(graph, engine, optimizer, 0)
    before = masks(engine)
    engine.rewire(100, Due(share=0.3), optimizer)
    after = masks(engine)
    with torch.no_grad():
        grown = graph.runnable(X)
        for member in engine.members:
            both = before[member.site.name] & after[member.site.name]
            weight = graph.weight(member.site)
            weight.masked_fill_(~both.reshape(weight.shape), 0)
        assert torch.equal(graph.runnable(X), grown)


def test_the_dense_gradient_is_that_of_the_layer_without_a_mask():
    graph, engine = built(RULES["rigl"])
    plain = net()
    with torch.no_grad():
        for index in (0, 2, 4):
            plain[index].weight.copy_(graph.module[index].weight)
    nn.functional.cross_entropy(plain(X), Y).backward()
    engine.watch(100)
    for part in (slice(0, 8), slice(8, 16)):  # two backward passes add up
        (nn.functional.cross_entropy(graph.runnable(X[part]), Y[part]) / 2).backward()
    for member, layer in zip(engine.members, (plain[0], plain[2], plain[4]), strict=True):
        [mask] = engine.watched(member)
        torch.testing.assert_close(mask.dense, layer.weight.grad)
        parameter = graph.parameter(member.site)
        assert bool((parameter.grad.reshape(-1)[~engine.mask(member)] == 0).all())
    engine.watch(101)
    assert all(mask.dense is None for m in engine.members for mask in engine.watched(m))


def test_cells_of_many_weights_keep_the_number_of_parameters():
    rule = Rule(
        "blocks",
        schedule=Schedule(every=1),
        drop=SmallestOfAll(),
        grow=AtRandom(),
        allocate=RULES["dsr_exact"].allocate,
    )
    graph, engine = built(rule, blocks={"0": 9, "2": 6})
    total = active(engine)
    optimizer = optimizer_of(graph)
    for number in range(20):
        step(graph, engine, optimizer, number)
        engine.rewire(number, Due(share=0.2), optimizer)
        assert active(engine) + engine.carried == total
        assert engine.carried == 0  # there are single weights that take the remainder


def test_full_tensors_pass_on_what_they_cannot_take():
    graph, engine = built(RULES["dsr_exact"], density=0.985)
    optimizer = optimizer_of(graph)
    total = active(engine)
    for number in range(5):
        step(graph, engine, optimizer, number)
        engine.rewire(number, Due(share=0.3), optimizer)
        assert active(engine) == total


def test_sites_have_their_own_random_numbers():
    runs = []
    for turned in (False, True):
        graph, engine = built(RULES["dsr_exact"])
        if turned:
            engine.members, engine.ever = engine.members[::-1], engine.ever[::-1]
        optimizer = optimizer_of(graph)
        for number in range(5):
            step(graph, engine, optimizer, number)
            engine.rewire(number, Due(share=0.2), optimizer)
        runs.append(masks(engine))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_the_share_ever_active_grows():
    graph, engine = built(RULES["dsr_exact"])
    optimizer, shares = optimizer_of(graph), []
    for number in range(5):
        step(graph, engine, optimizer, number)
        shares.append(engine.rewire(number, Due(share=0.2), optimizer)["ever_active"])
    assert shares == sorted(shares)
    assert 0.3 < shares[0] < shares[-1] <= 1


def test_a_policy_that_loses_weights_is_caught(monkeypatch):
    graph, engine = built(RULES["dsr_exact"])
    monkeypatch.setattr(engine, "_counts", lambda event, dropped: [0] * len(dropped))
    with pytest.raises(PostconditionError, match="active parameters"):
        engine.rewire(0, Due(share=0.2), optimizer_of(graph))


def test_baked_weights_hold_what_the_masks_kept():
    graph, engine = built(RULES["static"])
    counts = {m.site.name: int(engine.mask(m).sum()) for m in engine.members}
    bake_masks(graph)
    for member in engine.members:
        assert int(torch.count_nonzero(graph.weight(member.site))) == counts[member.site.name]
