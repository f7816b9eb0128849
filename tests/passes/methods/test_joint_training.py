"""Training by the method `joint`: what moves when, what a resumed run has, what comes out."""

from __future__ import annotations

import itertools

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
from passes.methods.phases import Phase

# Seconds each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

TOTAL = STEPS * EPOCHS
MODES = [
    {},
    {"mode": "prune"},
    {"mode": "quantize"},
    {"levels": "uniform"},
    {"mode": "quantize", "levels": "uniform"},
    {"allocate": "knapsack"},
    {"honest": True},
    {"prox": False},
]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.parametrize(
    ("options", "finetune"),
    [*((options, 0.3) for options in MODES), *((options, 0.0) for options in MODES[:4])],
    ids=str,
)
def test_the_budget_holds_in_the_end(options, finetune):
    training = Training("weight_bits<=7%", finetune=finetune, **options).train()
    before = training.graph.module.eval()(X)
    assert training.method.can_be_result()
    training.finished()
    assert bits_of(training.graph).keys() == {"conv", "first", "head"}
    if finetune:
        # What was evaluated is what comes out.
        assert torch.equal(training.graph.module(X), before)


@pytest.mark.parametrize(
    "budget", ["weight_bits<=1 bit", "weight_bits<=40 bit", "weight_bits<=99%"]
)
@pytest.mark.parametrize("mode", ["both", "prune"])
def test_it_holds_whatever_it_is(budget, mode):
    Training(budget, mode=mode).train().finished()


@pytest.mark.parametrize("mode", ["both", "prune", "quantize"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_it_holds_however_short_the_training_is(mode, epochs):
    training = Training("weight_bits<=7%", mode=mode, epochs=epochs)
    if epochs:
        training.alternation.total = 1
        training.method.on_phase_start(Phase())
        training.one_step()
        training.method.on_epoch(0, training.optimizer)
        assert training.alternation.settled
    training.finished()


@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_bits_that_never_change_still_fit_when_no_weight_may_go(levels):
    training = Training("weight_bits<=7%", mode="quantize", levels=levels, freeze_bits=0.0).train()
    training.finished()
    assert training.alternation.bits != [4, 4, 4]


def test_masks_are_fixed_in_the_last_part():
    training = Training("weight_bits<=5%", finetune=0.4, bits=2)
    training.train(0, 2)
    assert not training.alternation.settled
    zeros = None
    for epoch in (2, 3):
        training.graph.module.train()
        for _ in range(STEPS):
            training.one_step()
            assert training.alternation.settled == (training.step > 12)
            if not training.alternation.settled:
                continue
            now = {name: weight == 0 for name, weight in training.weights().items()}
            zeros = zeros or now
            assert same(zeros, now)
            # Training sees the levels: it computes what evaluation does, but for the norm.
            model = training.graph.module
            model.norm.eval()
            assert torch.equal(model(X), model.eval()(X))
            model.train()
        training.method.on_epoch(epoch, training.optimizer)
    assert any(bool(mask.any()) for mask in zeros.values())
    raw = training.weights()
    training.finished()
    done = training.weights()
    assert all(not bool(done[name][raw[name] == 0].any()) for name in raw)
    assert any(not torch.equal(done[name], raw[name]) for name in raw)


def test_weights_train_on_when_masks_are_fixed():
    training = Training(finetune=0.5).train(0, 3)
    before = training.weights()
    training.train(3, 4)
    assert all(not torch.equal(before[n], w) for n, w in training.weights().items() if w.any())


@pytest.mark.parametrize(
    ("mode", "share"), [("both", 0.0), ("both", 0.25), ("both", 0.6), ("quantize", 0.25)]
)
def test_bits_stay_once_they_are_frozen(mode, share):
    training = Training(
        "weight_bits<=5%", mode=mode, freeze_bits=share, start_bits=3, ladder=0.2
    ).train()
    bits = [tuple(row["bits"]) for row in training.seen]
    frozen = bits[int(share * TOTAL) :]
    assert len(set(frozen)) == 1
    changes = [a != b for a, b in itertools.pairwise([(3, 3, 3), *bits])]
    # They are chosen with the duals: at step 1, at every fourth, and at the end of an epoch.
    allowed = {1, *range(4, TOTAL + 1, 4), *range(STEPS + 1, TOTAL + 1, STEPS)}
    assert {n for n, changed in enumerate(changes, 1) if changed} <= allowed
    assert any(changes) == bool(share)
    training.finished()
    assert tuple(bits_of(training.graph).values()) == bits[-1]


def test_given_bits_never_change():
    training = Training(bits={"*": 3, "head": 2}).train()
    assert {tuple(row["bits"]) for row in training.seen} == {(3, 3, 2)}
    training.finished()
    assert bits_of(training.graph) == {"conv": 3, "first": 3, "head": 2}


@pytest.mark.parametrize("momentum", ["mask", "keep"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_momentum_of_what_is_removed(momentum, channels_last):
    model = small().to(
        memory_format=torch.channels_last if channels_last else torch.preserve_format
    )
    training = Training(model=model, momentum=momentum)
    training.method.on_phase_start(Phase())
    training.graph.module.train()
    for _ in range(4):
        training.one_step()
    removed, left = [], []
    for site in training.graph.sites:
        parameter = training.graph.parameter(site)
        buffer = training.optimizer.state[parameter]["momentum_buffer"]
        removed.append(buffer[parameter == 0])
        left.append(buffer[parameter != 0])
    assert sum(part.numel() for part in removed) > 20
    assert all(bool(part.any()) == (momentum == "keep") for part in removed if part.numel())
    assert any(bool(part.any()) for part in left)


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_the_budget_comes_down_a_ladder(stages):
    training = Training(stages=stages, ladder=0.5, project_every=1).train()
    allowed = [row["allowed_bits"] for row in training.seen]
    target = training.maximum
    assert allowed == sorted(allowed, reverse=True)
    assert set(allowed[TOTAL // 2 - 1 :]) == {target}
    if stages:
        assert len(set(allowed)) == stages
        first = 4.0 * SIZE
        steps = {int(first * (target / first) ** ((n + 1) / stages)) for n in range(stages)}
        assert all(min(abs(a - s) for s in steps) <= 1 for a in allowed)
    else:
        # It falls at every step, by the same factor.
        factors = [b / a for a, b in itertools.pairwise([4.0 * SIZE, *allowed[: TOTAL // 2]])]
        assert max(factors) - min(factors) < 0.1
    sizes = [
        sum(b * k for b, k in zip(r["bits"], r["nonzeros"], strict=True)) for r in training.seen
    ]
    assert all(size <= most for size, most in zip(sizes, allowed, strict=True))
    assert any(size > target for size in sizes) == (stages != 1)


def test_without_a_ladder_the_first_projection_is_the_last_budget():
    training = Training(ladder=0.0, project_every=1).train(0, 1)
    assert {row["allowed_bits"] for row in training.seen} == {training.maximum}
    assert training.method.can_be_result()
    assert not Training(ladder=0.9, finetune=0.1).train(0, 1).method.can_be_result()


def test_nothing_left_of_the_budget_is_no_exception():
    model = small()
    training = Training("weight_bits<=768 bit", model=model, finetune=0.0)
    assert training.maximum == 32 * 24
    graph = leave(training.graph, conv=1.0)
    limits = limits_of(graph, "weight_bits<=768 bit")
    method = method_of(finetune=0.0)
    plain = leave(traced(small().train(), X), conv=1.0)
    run = Run(one_shot=False, limits=limits, total_steps=4, epoch_steps=2)
    method.prepare(plain, method.plan(plain, costs_of(plain), limits, one_shot=False), run)
    optimizer = torch.optim.SGD(plain.module.parameters(), lr=0.05)
    method.on_phase_start(Phase())
    for step in range(1, 5):
        nn.functional.cross_entropy(plain.module(X), torch.tensor([0, 1])).backward()
        optimizer.step()
        method.on_step(step, optimizer)
    method.on_epoch(0, optimizer)
    assert method.can_be_result()
    # The layer that is left alone is trained, and takes the whole budget.
    method.finalize(plain, run)
    assert nominal(plain) <= 768
    assert not plain.weight(plain.by_name["head"]).any()


@pytest.mark.parametrize("prox", [True, False])
def test_the_pull_is_added_to_gradients_exactly_where_steps_are_not_proximal(prox):
    training = Training(model=attention(), prox=prox, rho=0.5)
    training.train(0, 1)
    training.graph.module.train()
    training.backward()
    parameters = dict(training.graph.module.named_parameters())
    before = {n: p.grad.clone() for n, p in parameters.items()}
    expected = {id(p): p.grad.clone().contiguous() for p in parameters.values()}
    rows = zip(training.alternation.targets.rows, training.alternation.splits, strict=True)
    for target, split in rows:
        site = target.site
        weight = training.graph.weight(site)
        pull = 0.5 * (weight - split.duplicate + split.dual)
        flat = expected[id(training.graph.parameter(site))].view(-1)
        flat[site.start : site.start + site.size] += pull.reshape(-1)
    training.method.on_gradients(training.optimizer)
    for name, parameter in parameters.items():
        want = before[name] if prox else expected[id(parameter)]
        assert torch.allclose(parameter.grad, want, rtol=1e-6, atol=1e-8), name
    changed = [n for n, p in parameters.items() if not torch.equal(p.grad, before[n])]
    assert all("original" in name for name in changed)
    assert bool(changed) != prox


def test_proximal_steps_follow_every_step_of_the_optimizer():
    training = Training(rho=0.7, ladder=0.0)
    training.train(0, 1)
    splits = [(s.duplicate.clone(), s.dual.clone()) for s in training.alternation.splits]
    training.graph.module.train()
    training.backward()
    training.optimizer.step()
    plain = [training.graph.weight(s).clone() for s in training.graph.sites]
    training.method.on_step(7, training.optimizer)  # no projection is due
    b = 0.05 * 0.7
    for site, weight, (duplicate, dual) in zip(training.graph.sites, plain, splits, strict=True):
        expected = (weight + b * (duplicate - dual)) / (1 + b)
        assert torch.allclose(training.graph.weight(site), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("project", "dual", "projected", "doubled"),
    [
        (0, 0, [1, 5, 10], [1, 5, 10]),
        (2, 4, [1, 2, 4, 5, 6, 8, 10], [1, 4, 5, 8, 10]),
        (3, 0, [1, 3, 5, 6, 9, 10], [1, 5, 10]),
        (1, 5, [*range(1, 11)], [1, 5, 10]),
    ],
)
def test_projections_and_duals_keep_their_intervals(project, dual, projected, doubled):
    training = Training(project_every=project, dual_every=dual)
    found = {"project": [], "update_duals": []}
    for name, calls in found.items():
        real = getattr(training.alternation, name)

        def noted(*args, real=real, calls=calls):
            calls.append(training.step)
            return real(*args)

        setattr(training.alternation, name, noted)
    training.train(0, 2)
    assert found == {"project": projected, "update_duals": doubled}


def test_the_dual_adds_up_what_is_left():
    training = Training(project_every=1, dual_every=1, rho_growth=1.5, ladder=0.0)
    training.method.on_phase_start(Phase())
    training.graph.module.train()
    for _ in range(3):
        before = [split.dual.clone() for split in training.alternation.splits]
        training.one_step()
        for split, old, site in zip(
            training.alternation.splits, before, training.graph.sites, strict=True
        ):
            assert torch.equal(split.dual, old + (training.graph.weight(site) - split.duplicate))
    before = [split.dual.clone() for split in training.alternation.splits]
    training.alternation.doubled = training.alternation.projected = training.alternation.step
    training.method.on_epoch(0, training.optimizer)
    assert training.alternation.rho == 0.05 * 1.5
    for split, old in zip(training.alternation.splits, before, strict=True):
        assert torch.allclose(1.5 * split.dual, old)


def test_the_history_tells_bits_counts_and_residuals():
    training = Training().train()
    early, late = training.seen[STEPS], training.seen[-1]
    assert set(early) == {
        "bits", "nonzeros", "allowed_bits", "primal_residual", "dual_residual",
    }  # fmt: skip
    assert set(late) == {"bits", "nonzeros", "allowed_bits"}
    assert early["primal_residual"] > 0 < early["dual_residual"]
    assert late["nonzeros"] == [int(w.count_nonzero()) for w in training.weights().values()]
    assert set(Training(mode="prune").train(0, 1).seen[0]) == {"bits", "nonzeros", "allowed_bits"}
    assert method_of().report() == {}


@pytest.mark.parametrize("options", [{}, {"mode": "quantize", "levels": "uniform"}], ids=str)
def test_two_runs_are_equal_bit_for_bit(options):
    first, second = (Training("weight_bits<=7%", **options).train() for _ in range(2))
    assert first.seen == second.seen
    assert same(first.finished(), second.finished())


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        *((options, 2) for options in MODES[:6]),
        ({}, 1),
        ({}, 3),
        ({"rho_growth": 1.3, "stages": 3, "project_every": 0, "dual_every": 0}, 1),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, stop):
    budget = "weight_bits<=7%"
    whole, stopped, resumed = (Training(budget, **options) for _ in range(3))
    whole.train()
    stopped.train(0, stop)
    with torch.no_grad():  # whatever the second preparation found is replaced
        for value in resumed.graph.runnable.state_dict().values():
            if value.is_floating_point():
                value.add_(0.5)
    resumed.load(stopped.state())
    resumed.train(stop, EPOCHS)
    assert resumed.seen == whole.seen[stop * STEPS :]
    assert same(whole.finished(), resumed.finished())


@pytest.mark.parametrize("lost", ["duals", "duplicates", "rho", "step"])
def test_a_lost_part_of_the_state_would_be_noticed(lost):
    whole, stopped, resumed = (Training("weight_bits<=5%", rho=0.5, bits=2) for _ in range(3))
    whole.train()
    stopped.train(0, 2)
    state = stopped.state()
    change = {
        "duals": lambda value: [torch.zeros_like(dual) for dual in value],
        "duplicates": lambda value: [torch.zeros_like(duplicate) for duplicate in value],
        "rho": lambda value: 2 * value,
        "step": lambda value: 0,
    }[lost]
    state[1][lost] = change(state[1][lost])
    resumed.load(state)
    if lost == "step":
        resumed.step = 0
    resumed.train(2, EPOCHS)
    assert not same(whole.finished(), resumed.finished())


def test_the_loss_falls():
    training = Training("weight_bits<=7%", finetune=0.4)

    def loss():
        with torch.no_grad():
            model = training.graph.module.eval()
            inputs, classes = X.repeat(4, 1, 1, 1), torch.tensor([0, 1] * 4)
            return float(nn.functional.cross_entropy(model(inputs), classes))

    def step(number):
        training.optimizer.zero_grad()
        output = training.graph.module.train()(X.repeat(4, 1, 1, 1))
        nn.functional.cross_entropy(output, torch.tensor([0, 1] * 4)).backward()
        training.method.on_gradients(training.optimizer)
        training.optimizer.step()
        training.method.on_step(number, training.optimizer)

    before = loss()
    training.method.on_phase_start(Phase())
    for number in range(1, TOTAL + 1):
        step(number)
    training.method.on_epoch(0, training.optimizer)
    training.finished()
    assert loss() < before
