"""DeepR in the engine: signs, noise, counts, one row for many steps, and a run that goes on."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from walk_runs import SEED, built, linear, masks, push, rule_of, same, sgd, steps, weights

from energy_model.errors import ArgumentError
from passes.dynamic.deep_r import signs
from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.random_keys import key_of
from passes.dynamic.schedule import Clock, Schedule
from passes.dynamic.start import SparseShape
from passes.dynamic.start_masks import START_EVENT
from passes.dynamic.walk import Walk
from passes.dynamic.walker import Walker

HOT = Walk(temperature=1e-3, l1=1e-3)
VARIANT = Walk("gradient", "first_update", eta=0.01, temperature=1e-2)
WALKS = {"original": HOT, "variant": VARIANT}


def fixed_signs(engine):
    return {
        m.site.name: signs(key_of(SEED, START_EVENT, f"{m.site.name}/signs"), m.shape.cells)
        for m in engine.members
    }


def dropped(row):
    return sum(row["dropped"].values())


def test_half_of_the_net_is_not_wiped_out_at_the_first_step(monkeypatch):
    """The authors of the variant take signs before they draw the weights."""
    clock = Clock(10, 1)  # a row after every step

    def first_drop():
        graph, engine = built(rule_of(), clock=clock)
        [row] = steps(graph, engine, sgd(graph, lr=1e-3), range(1))
        return dropped(row) / sum(engine.counts())

    assert first_drop() < 0.05
    monkeypatch.setattr(Walker, "begin", Walker.follow)  # weights do not take their signs
    assert 0.4 < first_drop() < 0.6


def test_at_the_start_weights_take_their_signs_and_keep_their_sizes():
    graph, engine = built(rule_of())
    plain, _ = built(rule_of(Walk(signs="first_update")))
    for member in engine.members:
        weight, keep = graph.weight(member.site).reshape(-1), engine.mask(member)
        before = plain.weight(plain.by_name[member.site.name]).reshape(-1)
        assert torch.equal(weight.abs(), before.abs())
        assert torch.equal(weight[keep].sign(), fixed_signs(engine)[member.site.name][keep])
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("walk", [Walk(temperature=0, l1=0), Walk(), VARIANT])
def test_a_step_of_no_length_drops_nothing(walk):
    graph, engine = built(rule_of(walk), clock=Clock(10, 1))
    before, optimizer = masks(engine), sgd(graph, lr=0.0)
    for row in steps(graph, engine, optimizer, range(5)):
        assert dropped(row) == 0
    assert same(masks(engine), before)


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_the_count_of_every_layer_is_constant(walk):
    graph, engine = built(rule_of(walk))
    counts, optimizer, total = engine.counts(), sgd(graph), 0
    for row in steps(graph, engine, optimizer, range(200)):
        assert engine.counts() == counts
        if row is not None:
            total += dropped(row)
            assert row["dropped"] == row["grown"]
            assert list(row["active"].values()) == counts
    assert total > 100
    for member in engine.members:
        dormant = ~engine.mask(member)
        assert bool((graph.weight(member.site).reshape(-1)[dormant] == 0).all())
        state = optimizer.state[graph.parameter(member.site)]["momentum_buffer"].reshape(-1)
        assert bool((state[dormant] == 0).all())


@pytest.mark.slow
def test_signs_never_change_over_a_thousand_steps():
    model, example = linear(20, 15), torch.zeros(1, 20)
    graph, engine = built(rule_of(HOT), model=model, example=example)
    expected, optimizer, total = fixed_signs(engine)["0"], sgd(graph), 0
    ever = torch.zeros(300, dtype=torch.bool)
    for row in steps(graph, engine, optimizer, range(1000)):
        weight = graph.weight(engine.members[0].site).reshape(-1)
        ever |= weight != 0
        assert bool((weight * expected >= 0).all())
        total += 0 if row is None else dropped(row)
    assert total > 500
    assert bool(ever.all())
    keep = engine.mask(engine.members[0])
    assert torch.equal(engine.walker.signs_of("0"), (expected * keep).to(torch.int8))


def test_the_noise_of_a_step_has_the_variance_two_eta_t():
    model, example = linear(400, 500), torch.zeros(1, 400)
    walk = Walk(temperature={0: 1e-3, 1: 4e-3}, l1=0)
    graph, engine = built(rule_of(walk), 0.5, model=model, example=example, clock=Clock(2, 2))
    site, eta = engine.members[0].site, 0.05
    keep = engine.mask(engine.members[0]).reshape(500, 400)
    graph.weight(site)[keep] *= 1e4  # far from zero: nothing crosses it
    graph.weight(site)[keep] += graph.weight(site)[keep].sign() * 10
    optimizer, moves = sgd(graph, lr=eta), []
    for step in range(4):
        before = graph.weight(site).double()
        graph.parameter(site).grad = torch.zeros(500, 400)
        optimizer.step()
        assert not dropped(engine.after_step(step, optimizer) or {"dropped": {}})
        moved = graph.weight(site).double() - before
        assert bool((moved[~keep] == 0).all())
        moves.append(moved[keep])
    # Weights of 10 and more are stored to 1e-6; the noise is 1e-2.
    for temperature, moved in zip([1e-3, 1e-3, 4e-3, 4e-3], moves, strict=True):
        assert abs(float(moved.var()) / (2 * eta * temperature) - 1) < 0.02
        assert abs(float(moved.mean())) < 5 * math.sqrt(2 * eta * temperature / moved.numel())
    together = torch.corrcoef(torch.stack(moves)) - torch.eye(4, dtype=torch.float64)
    assert float(together.abs().max()) < 5 / math.sqrt(moves[0].numel())


def test_eta_is_the_learning_rate_of_the_step_unless_given():
    for eta, expected in ((None, 0.3), (0.1, 0.1)):
        graph, engine = built(rule_of(Walk(eta=eta, temperature=0, l1=0.01)))
        optimizer = sgd(graph, lr=9.0)
        optimizer.param_groups[0]["lr"] = 0.3
        for member in engine.members:
            graph.weight(member.site).mul_(100)
        before = weights(engine)
        engine.after_step(0, optimizer)
        for name, weight in weights(engine).items():
            shrunk = before[name] - expected * 0.01 * before[name].sign()
            torch.testing.assert_close(weight[shrunk.abs() > 0.1], shrunk[shrunk.abs() > 0.1])


def test_groups_have_their_own_learning_rates_and_what_is_not_trained_does_not_walk():
    graph, engine = built(rule_of(Walk(temperature=0, l1=0.01)))
    first, second, third = (graph.parameter(m.site) for m in engine.members)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [third], "lr": 0.2}])
    for parameter in (first, second, third):
        parameter.data.mul_(100)
    before = [p.detach().clone() for p in (first, second, third)]
    engine.after_step(0, optimizer)
    for parameter, old, shrunk in zip((first, second, third), before, (1e-3, 0, 2e-3), strict=True):
        still = old.abs() > 0.1
        expected = old - shrunk * old.sign()
        torch.testing.assert_close(parameter.detach()[still], expected[still])


def test_noise_on_gradients_is_at_active_weights_only():
    model, example = linear(400, 500), torch.zeros(1, 400)
    walk = Walk("gradient", "first_update", eta=0.01, temperature=0.02, l1=0.0)
    graph, engine = built(rule_of(walk), 0.5, model=model, example=example)
    [member] = engine.members
    parameter, keep = graph.parameter(member.site), engine.mask(member).reshape(500, 400)
    optimizer, before = sgd(graph), weights(engine)

    def disturbed(**extra):
        parameter.grad = torch.ones(500, 400)
        engine.before_step(7, SimpleNamespace(param_groups=optimizer.param_groups, **extra))
        return parameter.grad - 1

    noise = disturbed()
    assert same(weights(engine), before)
    assert bool((noise[~keep] == 0).all())
    assert abs(float(noise[keep].var()) / (2 * 0.01 * 0.02) - 1) < 0.02
    scaled = disturbed(scaler=SimpleNamespace(get_scale=lambda: 4.0))
    torch.testing.assert_close(scaled, 4 * noise, rtol=1e-4, atol=1e-6)


def test_the_penalty_of_the_variant_is_in_the_gradient():
    graph, engine = built(rule_of(Walk("gradient", eta=0.01, temperature=0, l1=0.25)))
    push(graph, engine, 0, 0.0)
    grads = {m.site.name: graph.parameter(m.site).grad.clone() for m in engine.members}
    engine.before_step(0, sgd(graph))
    for member in engine.members:
        expected = grads[member.site.name] + 0.25 * graph.weight(member.site).sign()
        torch.testing.assert_close(graph.parameter(member.site).grad, expected)


def test_new_connections_take_the_sign_of_their_first_update():
    graph, engine = built(rule_of(VARIANT))
    optimizer = sgd(graph)
    for _ in steps(graph, engine, optimizer, range(40)):
        for member in engine.members:
            name, weight = member.site.name, graph.weight(member.site).reshape(-1)
            assert torch.equal(engine.walker.signs_of(name).float(), weight.sign())
    new = {n: m & (weights(engine)[n] == 0) for n, m in masks(engine).items()}
    assert sum(int(m.sum()) for m in new.values()) > 0
    [_] = [*steps(graph, engine, optimizer, range(40, 41))]
    for name, places in new.items():  # either sign will do for those
        assert bool(masks(engine)[name][places].all())
        assert bool((engine.walker.signs_of(name)[places] != 0).all())


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_the_order_of_sites_does_not_matter(walk):
    results = []
    for turned in (False, True):
        graph, engine = built(rule_of(walk), turned=turned)
        assert list(steps(graph, engine, sgd(graph), range(40)))
        results.append((masks(engine), weights(engine)))
    assert all(same(*pair) for pair in zip(*results, strict=True))


def copied(graph, engine, optimizer, rule, **options):
    """Another engine with the state of one, as a resumed run makes it."""
    saved = [graph.module.state_dict(), optimizer.state_dict(), engine.state_dict()]
    model, moments, rest = copy.deepcopy(saved)
    again, other = built(rule, **options)
    again.module.load_state_dict(model)
    resumed = sgd(again)
    resumed.load_state_dict(moments)
    other.load_state_dict(rest)
    return again, other, resumed


@pytest.mark.spread(1)
@pytest.mark.parametrize(("every", "stop"), [(1, 23), (3, 24)])
@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_a_run_goes_on_bit_for_bit(walk, every, stop):
    rule = rule_of(walk, schedule=Schedule(every=every, step_zero=True))
    parts = built(rule)
    parts = (*parts, sgd(parts[0]))
    assert [*steps(*parts, range(stop))] == [None] * stop
    again = copied(*parts, rule)
    ends = []
    for run in (parts, again):
        *_, row = steps(*run, range(stop, 100))
        ends.append({k: v for k, v in row.items() if k != "milliseconds"})
        assert row["events"] == math.ceil(100 / every)
    assert ends[0] == ends[1]
    assert same(masks(parts[1]), masks(again[1]))
    assert same(weights(parts[1]), weights(again[1]))


@pytest.mark.slow
def test_a_row_has_a_hundred_steps_or_what_is_left_of_an_epoch_or_of_the_walk():
    schedule = Schedule(every=1, step_zero=True, stop_share=0.7)
    graph, engine = built(rule_of(HOT, schedule=schedule), clock=Clock(2, 250))
    optimizer, flips = sgd(graph), 0
    rows = {}
    for step, row in enumerate(steps(graph, engine, optimizer, range(500))):
        if row is not None:
            rows[step] = row
            flips += dropped(row)
    assert {step: row["events"] for step, row in rows.items()} == {
        99: 100,
        199: 100,
        249: 50,
        299: 50,
        349: 50,
    }
    assert [*rows.values()][-1]["rewiring"] == engine.events <= 350
    assert flips > 350
    shares = [row["ever_active"] for row in rows.values()]
    assert shares == sorted(shares) and shares[-1] > 0.9
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_after_the_stop_nothing_walks_and_nothing_is_rewired():
    schedule = Schedule(every=1, step_zero=True, stop_epoch=1)
    for walk in WALKS.values():
        graph, engine = built(rule_of(walk, schedule=schedule), clock=Clock(2, 5))
        optimizer = sgd(graph)
        assert len([row for row in steps(graph, engine, optimizer, range(5)) if row]) == 1
        before, kept = masks(engine), weights(engine)
        for row in steps(graph, engine, sgd(graph, lr=0.0), range(5, 10)):
            assert row is None
        assert same(masks(engine), before)
        assert same(weights(engine), kept)


@pytest.mark.slow
def test_what_is_not_rewired_does_not_walk():
    graph, engine = built(rule_of(HOT), fixed=("2",))
    before, total = weights(engine)["2"], 0
    for row in steps(graph, engine, sgd(graph, lr=0.0), range(100)):
        total += 0 if row is None else row["events"]
    assert total == 100
    assert torch.equal(weights(engine)["2"], before)
    graph, engine = built(rule_of(HOT), fixed=("0", "2", "4"))
    *_, row = steps(graph, engine, sgd(graph), range(100))
    assert row["active"] == {}


def test_memory_in_another_order_is_the_same():
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).to(memory_format=layout)
        graph, engine = built(rule_of(HOT), model=model, example=torch.zeros(1, 3, 8, 8))
        for _ in steps(graph, engine, sgd(graph), range(30)):
            pass
        first = graph.parameter(engine.members[0].site)
        assert first.is_contiguous(memory_format=layout)
        ends.append(weights(engine))
    assert same(*ends)


def test_cells_of_several_weights_do_not_walk():
    graph, engine = built(rule_of())
    member = engine.members[0]
    shape = SparseShape("0", tuple(graph.parameter(member.site).shape), 9)
    with pytest.raises(ArgumentError, match="have no sign"):
        RewireEngine(graph, [Member(member.site, shape, 3)], rule_of(), Clock(1, 1), 0)
