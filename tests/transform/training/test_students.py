"""Students that are trained together are trained as if they were alone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from student_nets import (
    SEARCH,
    assert_same,
    assert_same_state,
    graph,
    lesson,
    net,
    student,
    teacher,
    together,
)
from torch import nn
from training_loaders import LOADERS
from training_runs import Recorded, batches, plain, reference

from energy_model.errors import ArgumentError, StorageError, TrainingError
from passes.reconstruct.batch_norm import reestimate_batch_norms
from transform.evaluate import evaluate
from transform.fingerprint import state_digest
from transform.training.config import Distill
from transform.training.losses import combined, cross_entropy, distillation

CPU = torch.device("cpu")
WIDTHS = (5, 16, 9)


def trained(widths, epochs=2, shared=None, **options):
    return together(shared or lesson(), [student(w, seed=w) for w in widths], epochs, **options)


def alone(widths, epochs=2, **options):
    """Each in a call of its own, with fresh data and teacher."""
    return [trained([w], epochs, lesson(**options))[0] for w in widths]


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", LOADERS)
def test_together_is_alone_bit_for_bit(name):
    # Dropout, a shuffling and augmenting loader, and a batch order that none of them may move.
    found = trained(WIDTHS, shared=lesson(data=LOADERS[name]()))
    for first, second in zip(found, alone(WIDTHS, data=LOADERS[name]()), strict=True):
        assert_same(first, second)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "changed",
    [
        {"accumulate": 2, "clip_grad": 0.5},
        {"amp": "bf16"},
        {"dropout": 0.6, "batches_per_epoch": 2, "label_smoothing": 0.1},
        {"optimizer": "sgd", "schedule": "cosine", "distill": Distill(1.0, "logit_mse")},
        {"distill": None},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_the_configuration(changed):
    config = dataclasses.replace(SEARCH, **changed)
    found = trained(WIDTHS, shared=lesson(config=config))
    for first, second in zip(found, alone(WIDTHS, config=config), strict=True):
        assert_same(first, second)
    default = trained(WIDTHS[:1])[0]
    assert not torch.equal(found[0].state.model["0.weight"], default.state.model["0.weight"])


@pytest.mark.slow
@settings(max_examples=5)
@given(st.permutations(range(3)), st.integers(1, 3))
def test_in_any_company_and_order(order, count):
    chosen = [WIDTHS[i] for i in order[:count]]
    for width, outcome in zip(chosen, trained(chosen, 1), strict=True):
        assert_same(outcome, trained([width], 1)[0])


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("list", {0: 0.01, 2: 0.001}),
        ("noisy", "constant"),
        ("shuffled", "constant"),
        ("own generator", "cosine"),
        ("state_dict", "constant"),
    ],
)
def test_going_on_is_never_to_have_stopped(name, schedule):
    config = dataclasses.replace(SEARCH, epochs=4, schedule=schedule)
    straight = trained(WIDTHS[:2], 4, lesson(data=LOADERS[name](), config=config))
    # The same loader all the time: it must not matter what has been read of it.
    shared = lesson(data=LOADERS[name](), config=config)
    states = [None] * 2
    for epochs in (1, 2, 4):
        outcomes = trained(WIDTHS[:2], epochs, shared, starts=states)
        states = [outcome.state for outcome in outcomes]
    for first, second in zip(straight, outcomes, strict=True):
        assert_same(first, second)


def test_ten_straight_epochs_are_three_and_seven_more():
    [three] = trained([16], 3)
    [rest] = trained([16], 10, starts=[three.state])
    assert_same(rest, trained([16], 10)[0])
    assert (three.state.epochs, rest.state.epochs) == (3, 10)


def test_students_join_in_at_their_own_epoch():
    [one] = trained([5], 1)
    mixed = trained([5, 16], 3, starts=[one.state, None])
    for width, outcome in zip([5, 16], mixed, strict=True):
        assert_same(outcome, trained([width], 3)[0])


def test_a_start_is_left_as_it_is():
    [one] = trained([16], 1)
    kept = copy.deepcopy((dict(one.state.model), dict(one.state.optimizer)))
    trained([16], 3, starts=[one.state])
    assert_same_state(one.state, dataclasses.replace(one.state, model=kept[0], optimizer=kept[1]))


def test_the_state_of_an_outcome_is_not_the_model_itself():
    graphs = [student(16)]
    [outcome] = together(lesson(), graphs, 1)
    before = copy.deepcopy(outcome.state.model)
    with torch.no_grad():
        for parameter in graphs[0].module.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], t) for name, t in outcome.state.model.items())


def test_a_loader_is_left_as_it_came():
    loader = LOADERS["own generator"]()
    before = loader.generator.get_state()
    trained([5], 2, lesson(data=loader))
    assert torch.equal(loader.generator.get_state(), before)
    stateful = LOADERS["state_dict"]()
    trained([5], 2, lesson(data=stateful))
    assert stateful.state_dict() == {"seed": 4, "epoch": 0}


def test_the_global_generators_are_left_alone():
    torch.manual_seed(17)
    expected = torch.rand(3)
    torch.manual_seed(17)
    trained([5], 1, lesson(data=LOADERS["noisy"]()))
    assert torch.equal(torch.rand(3), expected)


def test_a_student_that_changes_its_inputs_changes_no_other_s():
    def greedy():
        return graph(nn.Sequential(nn.ReLU(inplace=True), net()))

    data = batches()
    kept = [x.clone() for x, _ in data]
    _, last = together(lesson(data=data), [greedy(), student(16)], 1)
    assert_same(last, together(lesson(), [student(16)], 1)[0])
    assert all(torch.equal(x, before) for (x, _), before in zip(data, kept, strict=True))


def test_every_epoch_draws_anew():
    given, masks = student(16), []
    given.module[3].register_forward_hook(lambda _, args, out: masks.append((out, args[0])))
    config = dataclasses.replace(SEARCH, lr=0.0)
    together(lesson(config=config, bn_batches=0), [given], 2)
    first, second = masks[0], masks[3]  # three batches an epoch
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])


def test_other_seeds_give_other_weights():
    shared = lesson(data=LOADERS["shuffled"](), bn_batches=0)
    same = trained([16], 1, shared)[0].state.model["0.weight"]
    other = trained([16], 1, dataclasses.replace(shared, seed=4))[0].state.model["0.weight"]
    dropped = trained([16], 1, shared, seeds=[99])[0].state.model["0.weight"]
    assert not torch.equal(same, other)
    assert not torch.equal(same, dropped)


@pytest.mark.parametrize("kind", ["kl", "logit_mse", None])
def test_the_weights_are_those_of_a_plain_loop(kind):
    # Against an independent loop of the tests, without norm and dropout.
    how = None if kind is None else Distill(0.3, kind)
    config = dataclasses.replace(SEARCH, epochs=2, distill=how)
    master = plain(seed=4)
    [outcome] = together(lesson(teacher=master, config=config), [graph(plain(seed=1))], 2)
    expected = reference(plain(seed=1), batches(), config, master)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(outcome.state.model[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_default_loss_by_hand():
    # alpha * T^2 * KL(teacher / T || student / T) + (1 - alpha) * CE with alpha 1/2 and T 4.
    s, t = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([[2.0, -1.0], [0.0, 1.0]])
    y = torch.tensor([0, 0])
    soft, hard = torch.softmax(t / 4, 1), torch.softmax(s / 4, 1)
    kl = float((soft * (soft / hard).log()).sum() / 2) * 16
    ce = float(-torch.softmax(s, 1)[:, 0].log().mean())
    how = SEARCH.distillation
    found = combined(cross_entropy(0.0)(s, y), distillation(s, t, how), how)
    assert float(found) == pytest.approx(0.5 * kl + 0.5 * ce, rel=1e-6)


def test_the_data_is_read_once_and_the_teacher_run_once_for_all():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = teacher()
            self.calls = []

        def forward(self, x):
            self.calls.append(1)
            return self.net(x)

        def __deepcopy__(self, memo):
            return self

    data, master = Recorded(batches()), Counted()
    trained(WIDTHS, 4, lesson(data=data, teacher=master, bn_batches=0))
    assert data.epochs == 4
    assert len(master.calls) == 4 * 3 + 1  # and once to see what outputs look like


def test_the_teacher_is_never_changed():
    master = teacher().train()
    before, flags = state_digest(master), [part.training for part in master.modules()]
    trained(WIDTHS, 2, lesson(teacher=master))
    assert state_digest(master) == before
    assert [part.training for part in master.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in master.parameters())


def test_no_epochs_only_estimate_norms_and_score():
    given, data = student(16), Recorded(batches())
    before = copy.deepcopy(given.module.state_dict())
    [outcome] = together(lesson(data=data), [given], 0)
    assert data.epochs == 1  # for the norms
    assert outcome.state.epochs == 0
    assert all(torch.equal(before[name], t) for name, t in outcome.state.model.items())
    expected = student(16)
    calls = [graph(net()).call.__class__((x,)) for x, _ in batches()[:2]]
    reestimate_batch_norms(expected, lambda count: iter(calls[:count]), 2)
    after = given.module.state_dict()
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(after[name], tensor), name
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert outcome.accuracy == evaluate(expected.module, batches(seed=7), CPU)


def test_scores_are_those_of_norms_estimated_anew():
    given = student(16)
    [outcome] = together(lesson(), [given], 2)
    assert outcome.accuracy == evaluate(given.module, batches(seed=7), CPU)
    assert not torch.equal(
        given.module.state_dict()["1.running_var"], outcome.state.model["1.running_var"]
    )
    left = student(16)
    [other] = together(lesson(bn_batches=0), [left], 2)
    assert_same_state(outcome.state, other.state)
    assert torch.equal(
        left.module.state_dict()["1.running_var"], other.state.model["1.running_var"]
    )


def test_a_frozen_norm_goes_on_as_if_it_had_never_been_scored():
    # It uses its running statistics in training: estimating them for a score must not count.
    def frozen():
        model = net(16).train()
        model[1].eval()
        return graph(model)

    shared = lesson()
    [straight] = together(shared, [frozen()], 4)
    [one] = together(shared, [frozen()], 1)
    [rest] = together(shared, [frozen()], 4, starts=[one.state])
    assert_same(straight, rest)


def test_students_keep_their_mode():
    given = student(16)
    together(lesson(), [given], 1)
    assert not any(part.training for part in given.module.modules())


def test_a_user_s_loss_and_metric_are_used():
    seen = []

    def loss(outputs, targets):
        seen.append(1)
        return nn.functional.cross_entropy(outputs, targets) * 2

    found = trained([16], 1, lesson(loss=loss, metric=lambda o, t: -5.0))
    assert found[0].accuracy == -5.0
    assert len(seen) == 3 + 1  # and once for the teacher
    default = trained([16], 1)[0]
    assert not torch.equal(found[0].state.model["0.weight"], default.state.model["0.weight"])


def test_without_labels_distillation_is_enough():
    config = dataclasses.replace(SEARCH, distill=Distill(1.0, "logit_mse"))
    unlabelled = [x for x, _ in batches()]
    first = trained([16], 2, lesson(config=config, data=unlabelled))[0]
    assert_same(first, trained([16], 2, lesson(config=config))[0])
    with pytest.raises(ArgumentError, match="no targets"):
        trained([16], 2, lesson(data=unlabelled))


def test_what_is_wrong_for_all_is_raised():
    with pytest.raises(ArgumentError, match="no batches"):
        trained([16], 1, lesson(data=[]))
    with pytest.raises(ArgumentError, match="no targets"):
        trained([16], 1, lesson(valid=[x for x, _ in batches()]))

    def broken(outputs, targets):
        raise KeyError("mine")

    with pytest.raises(TrainingError, match="mine"):
        trained([16], 1, lesson(loss=broken))
    with pytest.raises(ArgumentError, match="plateau"):
        lesson(config=dataclasses.replace(SEARCH, schedule="plateau"))
    with pytest.raises(ArgumentError, match="teacher"):
        lesson(teacher=None)
    [one] = trained([16], 2)
    with pytest.raises(StorageError, match="does not fit"):
        trained([5], 3, starts=[one.state])
    with pytest.raises(StorageError, match="2 epochs, and 1"):
        trained([16], 1, starts=[one.state])
    assert together(lesson(), [], 1) == []
