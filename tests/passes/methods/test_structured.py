"""Methods that remove channels: budgets, training in steps, rules, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.base import Run
from passes.methods.registry import find_method
from passes.tracing.trace import trace
from transform.fingerprint import state_digest
from transform.gradients import Gradients
from transform.limits import Subject
from transform.pipeline import resolve
from transform.testing import check_method

METHODS = ("l1", "l2", "bn_gamma", "taylor", "random")


def net(classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, classes),
        ).eval()


def data(batches=6, size=8, classes=3):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(size, 2, 8, 8, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for _ in range(batches)
    ]


def compressed(method, budget="macs<=50%", **kwargs):
    kwargs.setdefault("train", False)
    return transform.compress(net(), budget, data(), method=method, progress="none", **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l2", "taylor", "random"])  # the others differ in one formula
def test_the_contract(name):
    check_method(name)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", METHODS)
def test_a_budget_of_macs_is_met_by_smaller_layers(name):
    result = compressed(name)
    assert result.certificate.holds
    assert result.costs.after.total.macs <= 0.5 * result.costs.before.total.macs
    assert result.costs.after.total.macs == result.plan.reached["macs"]
    widths = (result.model[0].out_channels, result.model[3].out_channels)
    assert widths != (12, 16)
    assert result.model[8].in_features == 4 * widths[1]
    assert result.model[1].num_features == widths[0]
    assert any(decision.what == "channels removed" for decision in result.decisions)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("scope", "key"),
    [("global", key) for key in ("params", "energy", "nonzeros", "weight_bits")]
    + [pytest.param("global", "size", marks=pytest.mark.slow)]
    + [("layer", key) for key in ("params", "energy")],
)
def test_every_other_limit(key, scope):
    result = compressed(transform.L2Channels(scope=scope), f"{key}<=60%")
    [row] = result.certificate.rows
    assert row.holds
    assert row.reached <= result.plan.reached[key]
    if key != "size":
        assert row.reached == result.plan.reached[key]
    assert row.reached > 0.3 * row.base  # not far below what was asked


def test_two_limits_at_once():
    result = compressed("l1", "macs<=70%, params<=40%")
    assert all(row.holds for row in result.certificate.rows)


def test_per_layer_keeps_the_same_share_of_every_group():
    result = compressed(transform.L2Channels(scope="layer"))
    shares = [row.keep / row.size for row in result.plan.rows if row.why == "by the budget"]
    assert len(shares) == 2
    assert max(shares) - min(shares) <= 1 / 12


def test_the_weights_that_stay_are_the_callers():
    model, result = net(), compressed("l2")
    kept = result.plan.details["units"]
    assert torch.equal(result.model[0].weight, model[0].weight[kept["0"]])
    assert torch.equal(result.model[3].weight, model[3].weight[kept["3"]][:, kept["0"]])
    norms = model[0].weight.square().sum((1, 2, 3)) + model[3].weight.square().sum((0, 2, 3))
    scores = norms.detach().numpy() + model[1].weight.square().detach().numpy()
    assert set(kept["0"]) == set(np.argsort(-scores)[: len(kept["0"])].tolist())


def test_channel_multiples():
    result = compressed(transform.L2Channels(channel_multiple=4))
    assert result.model[0].out_channels % 4 == 0
    assert result.model[3].out_channels % 4 == 0
    profile = transform.Hardware(name="vector", channel_multiple=8)
    result = compressed("l2", hardware=profile)
    # 12 channels are no multiple of 8, but what the model came with may stay.
    assert result.model[0].out_channels in (8, 12)
    assert result.model[3].out_channels in (8, 16)


def test_taylor_removes_what_the_loss_does_not_need():
    model = net()
    with torch.no_grad():
        model[3].weight[:, :4] = 0.0  # nothing reads the first four channels
        model[0].weight[:4] *= 100  # however large they are
    kept = {}
    for method in (transform.TaylorChannels(normalize="none"), transform.L2Channels()):
        result = transform.compress(
            model, "macs<=85%", data(), method=method, train=False, progress="none"
        )
        kept[type(method).__name__] = result.plan.details["units"]["0"]
    assert min(kept["TaylorChannels"]) >= 2
    assert {0, 1, 2, 3} <= set(kept["L2Channels"])


def test_random_follows_the_seed_of_the_run():
    first, same, other = (compressed("random", seed=seed).plan for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_trained_at_once():
    result = compressed("l2", train=2)
    assert result.certificate.holds
    assert [row["epoch"] for row in result.history if row["event"] == "trained"] == [1, 2]
    # Trained: the weights are no longer the caller's.
    kept = result.plan.details["units"]["0"]
    assert not torch.equal(result.model[0].weight, net()[0].weight[kept])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["l2", "taylor"])
@pytest.mark.slow
def test_trained_in_steps(name, optimizer):
    config = {"l2": transform.L2Channels, "taylor": transform.TaylorChannels}[name](steps=3)
    train = transform.TrainConfig(epochs=3, optimizer=optimizer, momentum=0.9, lr=0.01)
    result = compressed(config, "macs<=40%", train=train, valid=data(2))
    assert result.certificate.holds
    assert result.costs.after.total.macs <= 0.4 * result.costs.before.total.macs
    removed = [d for d in result.decisions if d.what == "channels removed" and d.layer == "3"]
    widths = [(d.before, d.after) for d in removed]
    assert len(widths) >= 2, widths  # it shrank more than once
    assert widths[0][1] == widths[1][0]


@pytest.mark.slow
def test_a_training_too_short_for_its_steps_still_meets_the_budget():
    result = compressed(transform.L2Channels(steps=40, until=1.0), "params<=40%", train=1)
    assert result.certificate.holds


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("name", [pytest.param("l2", marks=pytest.mark.slow), "taylor"])
@pytest.mark.slow
def test_steps_resume_bit_for_bit(name, tmp_path):
    """Stopped in the third epoch, after two of three steps of the removal."""
    config = {"l2": transform.L2Channels, "taylor": transform.TaylorChannels}[name]
    method = config(steps=3, until=1.0)
    train = transform.TrainConfig(epochs=4, lr=0.02, momentum=0.9)

    class Stopping(list):
        looks, stop = 0, None

        def __iter__(self):
            for item in list.__iter__(self):
                self.looks += 1
                if self.looks == self.stop:
                    raise _Stopped
                yield item

    def run(stop=None, **kwargs):
        batches = Stopping(data())
        batches.stop = stop
        return transform.compress(
            net(), "macs<=40%", batches, method=method, train=train, valid=data(2),
            progress="none", **kwargs,
        )  # fmt: skip

    whole = run()
    # Looks: examples and labels, the gradients of taylor (a pass, and one more at each step).
    before = {"l2": 1, "taylor": 2 + 6 + 6}[name]
    with pytest.raises(_Stopped):
        run(stop=before + 2 * 6 + 4, out=tmp_path / "run")
    again = run(out=tmp_path / "run")
    assert len([d for d in again.decisions if d.what == "channels removed"]) == len(
        [d for d in whole.decisions if d.what == "channels removed"]
    )
    assert state_digest(again.model) == state_digest(whole.model)
    assert again.certificate == whole.certificate


@pytest.mark.slow
def test_steps_keep_the_contract():
    check_method(transform.L2Channels(steps=3, until=0.9))


def test_a_layer_that_is_left_alone_keeps_its_shape():
    result = compressed("l2", "macs<=90%", layers={"0": False})
    assert torch.equal(result.model[0].weight, net()[0].weight)
    assert result.model[3].out_channels < 16
    with pytest.raises(InfeasibleBudget, match="left alone"):
        compressed("l2", "macs<=70%", layers={"*": False})


def test_what_cannot_be_reached_names_the_least():
    with pytest.raises(InfeasibleBudget) as caught:
        compressed("l2", "macs<=0.1%")
    again = compressed("l2", {"macs": int(caught.value.tightest)})
    assert again.certificate.holds
    with pytest.raises(InfeasibleBudget):
        compressed("l2", {"macs": int(caught.value.tightest) - 1})


def test_a_model_whose_every_group_is_frozen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    example = torch.zeros(1, 8)
    with pytest.raises(InfeasibleBudget, match="output of the model") as caught:
        transform.compress(model, "macs<=50%", example_inputs=example, progress="none")
    assert caught.value.tightest == 24
    same = transform.compress(model, "macs<=100%", example_inputs=example, progress="none")
    assert torch.equal(same.model[1].weight, model[1].weight)


def test_bn_gamma_says_which_groups_it_cannot_score():
    model = net()
    model[1] = nn.Identity()
    result = transform.compress(
        model, "macs<=80%", data(), method="bn_gamma", train=False, progress="none"
    )
    assert result.model[0].out_channels == 12
    stay = [d for d in result.decisions if d.layer == "0" and d.what == "channels stay"]
    assert "nothing that this score is made of" in stay[0].why


def test_taylor_without_labels():
    for given in (None, [x for x, _ in data()]):
        with pytest.raises(ArgumentError, match="needs labelled data"):
            transform.compress(
                net(), "macs<=50%", given, example_inputs=data()[0][0], method="taylor",
                progress="none",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"scope": "block"}, "scope"),
        ({"steps": 0}, "steps"),
        ({"until": 1.5}, "until"),
        ({"max_removed": -0.1}, "max_removed"),
        ({"channel_multiple": 0}, "channel_multiple"),
        ({"normalize": "sum"}, "normalize"),
        ({"per_cost": True, "scope": "layer"}, "per_cost"),
    ],
)
def test_bad_configurations(values, where):
    with pytest.raises(ArgumentError, match=where):
        transform.L2Channels(**values)


def test_configurations_are_found_by_class_and_name():
    for name in METHODS:
        spec, config = find_method(name)
        assert find_method(copy.deepcopy(config))[0].name == spec.name == name
        assert "macs" in spec.serves


@pytest.mark.slow
def test_auto_removes_channels_where_nothing_else_helps():
    for budget in ("macs<=60%", "params<=60%", "size<=60%"):
        result = compressed("auto", budget)
        assert result.method == "l2"
        assert result.certificate.holds
    assert compressed("auto", "energy<=60%").method == "energy"


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", METHODS)
def test_scoring_changes_no_bit(name):
    model = net().train()
    model[0].weight.requires_grad_(False)
    call = as_call(model, data()[0][0])
    graph = trace(model, call)
    subject = Subject(graph, load_hardware("eyeriss"))
    limits = resolve(transform.Budget.parse("macs<=50%"), subject)
    spec, config = find_method(name)
    method = spec.build(config)
    digest, flags = state_digest(model), [part.training for part in model.modules()]
    run = Run(gradients=Gradients(data(), None, torch.device("cpu")), limits=limits)
    method.observe(graph, run)
    method.plan(graph, subject.costs, limits)
    assert state_digest(model) == digest
    assert [part.training for part in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def images(count=8, channels=2):
    return torch.zeros(count, channels, 8, 8)


@pytest.mark.parametrize(
    ("batch", "loss", "match"),
    [
        ((images(), torch.arange(8) + 7), None, "out of bounds"),
        ((images(), torch.randn(8)), None, "the model or the loss fails"),
        ((images(4, 3), torch.zeros(4, dtype=torch.long)), None, "the model or the loss fails"),
        ((images(), torch.arange(8) % 3), lambda o, t: o, "no single tensor"),
        ((images(), torch.arange(8) % 3), lambda o, t: o.detach().sum(), "no single tensor"),
    ],
)
def test_what_taylor_cannot_differentiate_is_a_typed_error(batch, loss, match):
    with pytest.raises(transform.CompressionError, match=match):
        transform.compress(
            net(), "macs<=50%", [batch] * 2, example_inputs=images(1), method="taylor",
            train=False, loss=loss, progress="none",
        )  # fmt: skip


def test_an_optimizer_that_cannot_lose_channels_is_named():
    class Factored(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["rows"] = torch.zeros(7, 7)

    train = transform.TrainConfig(epochs=2, optimizer=lambda p: Factored(p, lr=0.01))
    with pytest.raises(transform.PreconditionError, match="state"):
        compressed(transform.L1Channels(steps=2), train=train)
