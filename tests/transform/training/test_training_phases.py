"""The loop with several phases: a toy method with three, and what each may touch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from training_loaders import Noisy
from training_runs import Falling, batches, plain, rich

from passes.inputs import as_call
from passes.methods.base import Method
from passes.methods.config import MethodConfig
from passes.methods.phases import Phase, PhaseEnd
from passes.tracing.trace import trace
from transform import TrainConfig
from transform.training.checkpoint import Checkpoints
from transform.training.loop import Trainer
from transform.training.randomness import seeded

CPU = torch.device("cpu")
EPOCHS, STEPS = 2, 3


class Toy(Method):
    """All parameters with SGD, then one with Adam, then a buffer; notes every hook."""

    def __init__(self, graph, phases):
        super().__init__(MethodConfig())
        self.graph, self.phases = graph, phases
        self.calls, self.rates, self.optimizers, self.flags = [], [], [], []

    def plan(self, graph, costs, limits, *, one_shot=True):
        raise NotImplementedError

    def prepare(self, graph, plan, run):
        raise NotImplementedError

    def finalize(self, graph, run):
        raise NotImplementedError

    def next_phase(self, ended):
        return self.phases[len(ended)] if len(ended) < len(self.phases) else None

    def on_phase_start(self, phase):
        self.calls.append(("start", phase.name))

    def on_loss(self, loss, batch, outputs):
        self.calls.append(("loss",))
        self.flags.append([p.requires_grad for p in self.graph.module.parameters()])
        return loss

    def on_gradients(self, optimizer):
        self.calls.append(("gradients",))

    def on_step(self, step, optimizer):
        self.calls.append(("step", step))
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not self.optimizers or self.optimizers[-1] is not optimizer.optimizer:
            self.optimizers.append(optimizer.optimizer)

    def on_epoch(self, epoch, optimizer):
        self.calls.append(("epoch", epoch))

    def on_phase_end(self, phase):
        self.calls.append(("end", phase.name))

    def state_dict(self):
        return {"calls": len(self.calls)}


class Shifted(nn.Module):
    """A layer and a buffer that is added to its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(8))
        self.body = plain()

    def forward(self, x):
        return self.body(x + self.shift)


def phases_of(model):
    weight = model.body[2].weight
    return [
        Phase("all"),
        Phase("one", (weight,), {"optimizer": "adam", "lr": 0.01}),
        Phase("buffer", (model.shift,), {"schedule": "constant"}, candidate=False),
    ]


def trainer_of(model=None, phases=phases_of, data=None, **options):
    model = Shifted() if model is None else model
    graph = trace(model, as_call(model, batches()[0][0]))
    method = Toy(graph, phases(model))
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    train = {"epochs": EPOCHS, "lr": 0.1} | {k: v for k, v in options.items() if k in fields}
    rest = {k: v for k, v in options.items() if k not in fields}
    data, valid = batches() if data is None else data, rest.pop("valid", None)
    return Trainer(graph, method, TrainConfig(**train), data, valid, CPU, **rest)


def test_hooks_are_called_in_their_order():
    trainer = trainer_of()
    trainer.fit()
    batch = [("loss",), ("gradients",)]
    expected = []
    for name in ("all", "one", "buffer"):
        expected.append(("start", name))
        for epoch in range(EPOCHS):
            for step in range(STEPS):
                expected += [*batch, ("step", epoch * STEPS + step + 1)]
            expected.append(("epoch", epoch))
        expected.append(("end", name))
    assert trainer.method.calls == expected
    assert [end.name for end in trainer.ended] == ["all", "one", "buffer"]


def test_learning_rates_restart_and_optimizers_are_rebuilt():
    trainer = trainer_of()
    trainer.fit()
    kinds = [type(optimizer) for optimizer in trainer.method.optimizers]
    assert kinds == [torch.optim.SGD, torch.optim.Adam, torch.optim.SGD]
    each = EPOCHS * STEPS
    first, second, third = (trainer.method.rates[i * each : (i + 1) * each] for i in range(3))
    assert first[0] == 0.1
    assert first == sorted(first, reverse=True) != [0.1] * each
    assert second == pytest.approx([0.1 * rate for rate in first])
    assert third == [0.1] * each
    trained = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in trainer.method.optimizers
    ]
    model = trainer.graph.module
    assert trained[0] == {id(p) for p in model.parameters()}
    assert trained[1:] == [{id(model.body[2].weight)}, {id(model.shift)}]


def test_only_what_is_trained_changes_by_a_bit():
    trainer, states = trainer_of(), []

    def noted(row):
        states.append({k: v.clone() for k, v in trainer.graph.module.state_dict().items()})

    trainer.report = noted
    trainer.fit()
    ends = [states[0], states[EPOCHS - 1], states[2 * EPOCHS - 1], states[3 * EPOCHS - 1]]
    changed = [
        {key for key in a if not torch.equal(a[key], b[key])}
        for a, b in itertools.pairwise(ends[1:])
    ]
    assert changed == [{"body.2.weight"}, {"shift"}]


def test_flags_are_as_they_were_and_no_gradient_stays():
    model = Shifted()
    model.body[0].bias.requires_grad_(False)
    trainer = trainer_of(model)
    trainer.fit()
    each = EPOCHS * STEPS
    found = trainer.method.flags
    assert found[:each] == [[True, False, True, True]] * each
    assert found[each : 2 * each] == [[False, False, True, False]] * each
    assert found[2 * each :] == [[False] * 4] * each
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert not model.shift.requires_grad
    assert model.shift.grad is None
    assert model.shift.abs().max() > 0


def test_flags_are_restored_when_a_phase_fails():
    class Broken:
        def __len__(self):
            return STEPS

        def __iter__(self):
            yield from batches()[:1]
            raise KeyboardInterrupt

    model = Shifted()
    trainer = trainer_of(model, lambda m: phases_of(m)[2:], Broken(), accumulate=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert all(p.requires_grad for p in model.parameters())
    assert not model.shift.requires_grad
    assert model.shift.grad is None


def test_rows_of_the_history_tell_their_phase():
    trainer = trainer_of(valid=batches(), log_every=2)
    rows = trainer.fit()
    ends = [row for row in rows if "metric" in row]
    assert [row["epoch"] for row in ends] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in ends] == [3, 6, 9, 12, 15, 18]
    assert [row["phase"] for row in ends] == ["all"] * 2 + ["one"] * 2 + ["buffer"] * 2
    assert ["within" in row for row in ends] == [True] * 4 + [False] * 2
    assert all("phase" in row for row in rows)


def test_a_single_phase_needs_no_name():
    rows = trainer_of(rich(), lambda m: [Phase()], valid=batches()).fit()
    assert all("phase" not in row for row in rows)


def test_only_candidates_are_selected():
    class Script:
        """Best in the third phase, which is none; else in the second epoch."""

        def __init__(self):
            self.values = iter([0.25, 0.5, 0.375, 0.25, 0.75, 0.875])

        def __call__(self, outputs, targets):
            return next(self.values)

    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    trainer, states = trainer_of(valid=whole, metric=Script()), []
    trainer.report = lambda row: states.append(
        {k: v.clone() for k, v in trainer.graph.module.state_dict().items()}
    )
    trainer.fit()
    assert (trainer.best.metric, trainer.best.epoch) == (0.5, 2)
    final = trainer.graph.module.state_dict()
    assert all(torch.equal(value, final[key]) for key, value in states[1].items())
    ends = [PhaseEnd("all", 0.5), PhaseEnd("one", 0.25), PhaseEnd("buffer", None)]
    assert trainer.ended == ends


def test_the_last_epoch_of_the_best_phase():
    values = iter([0.875, 0.25, 0.125, 0.5, 0.0, 0.0])
    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    trainer = trainer_of(valid=whole, metric=lambda o, t: next(values), select="last")
    trainer.fit()
    assert (trainer.best.metric, trainer.best.epoch) == (0.5, 4)
    assert [end.metric for end in trainer.ended] == [0.25, 0.5, None]


def test_nothing_out_of_budget_is_selected():
    trainer = trainer_of(valid=batches(), metric=Falling(), within=lambda: False)
    trainer.fit()
    assert trainer.best.state is None
    assert [end.metric for end in trainer.ended][:2] == [1 / 2, 1 / 4], "the last of each phase"


def test_a_phase_may_have_epochs_of_its_own():
    def phases(model):
        return [Phase("short", None, {"epochs": 1}), Phase("long", None, {"epochs": 4})]

    trainer = trainer_of(phases=phases, valid=batches())
    rows = trainer.fit()
    assert [row["phase"] for row in rows] == ["short"] + ["long"] * 4
    assert [end.name for end in trainer.ended] == ["short", "long"]
    rates = [row["lr"] for row in rows[1:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02, "the schedule ends with the phase"


def test_a_phase_of_no_epochs_ends_at_once():
    def phases(model):
        return [Phase("none", None, {"epochs": 0}), Phase("some")]

    trainer = trainer_of(phases=phases, valid=batches())
    assert [row["phase"] for row in trainer.fit()] == ["some"] * EPOCHS
    assert trainer.ended[0] == PhaseEnd("none", None)


def test_no_epochs_train_nothing():
    model = Shifted()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = trainer_of(model, epochs=0, valid=batches())
    assert trainer.fit() == []
    assert trainer.method.calls == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_in_mixed_precision_methods_look_in_full_precision():
    seen, trained = [], []

    class Looking(Toy):
        def look(self):
            layer = self.graph.module.body[0]
            hook = layer.register_forward_hook(
                lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
            )
            self.graph.runnable(batches()[0][0])
            hook.remove()

        def on_epoch(self, epoch, optimizer):
            self.look()

        def on_phase_end(self, phase):
            self.look()

    trainer = trainer_of(amp="bf16", epochs=1)
    trainer.method = Looking(trainer.graph, trainer.method.phases)
    trainer.graph.module.body[0].register_forward_hook(
        lambda *_: trained.append(torch.is_autocast_enabled("cpu"))
    )
    trainer.fit()
    assert trained[:3] == [True] * 3
    assert seen == [False] * 6


class Stop(BaseException):
    """Ends a run from outside."""


def stopping(after):
    left = iter(range(after))

    def loss(outputs, targets):
        if next(left, None) is None:
            raise Stop
        return nn.functional.cross_entropy(outputs, targets)

    return loss


ANYWHERE = [*[(after, 1) for after in (0, 2, 4, 6, 10, 12, 16, 18)], (4, 2), (9, 2), (12, 2)]


@pytest.mark.spread(1)
@pytest.mark.parametrize(("after", "save_every"), ANYWHERE)
def test_stopped_anywhere_it_goes_on_alike(after, save_every, tmp_path):
    options = {"valid": batches(), "save_every": save_every}
    whole = trainer_of(data=Noisy(), **options)
    with seeded(0, CPU):
        whole.fit()
    checkpoints = Checkpoints(tmp_path, "toy")
    stopped = trainer_of(data=Noisy(), checkpoints=checkpoints, loss=stopping(after), **options)
    with seeded(0, CPU):
        if after < 3 * EPOCHS * STEPS:
            with pytest.raises(Stop):
                stopped.fit()
        else:
            stopped.fit()
    resumed = trainer_of(data=Noisy(), checkpoints=checkpoints, **options)
    with seeded(0, CPU):
        resumed.fit()
    assert resumed.history == whole.history
    assert resumed.ended == whole.ended
    states = [t.graph.module.state_dict() for t in (whole, resumed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    # What had ended is not run again.
    assert [c for c in resumed.method.calls if c[0] == "end"] == [
        ("end", phase.name) for phase in whole.method.phases[len(stopped.ended) :]
    ]
