"""`transform.sensitivity`: closed forms, the same done by hand, nothing touched."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from sensitivity_nets import EYE, TRUTH, conv, line
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transform_nets import Branching, HoldsOwnLeaf, Recurrent, TiedNet, TwoInputs, made

import transform
from energy_model.errors import ArgumentError
from transform.evaluate import evaluate


def pruned_by_hand(parameter, share):
    """Zero the smallest magnitudes by a plain sort; returns how many became zero."""
    flat = parameter.data.view(-1)
    order = flat.abs().argsort(stable=True)[: int(share * flat.numel())]
    removed = int((flat[order] != 0).sum())
    flat[order] = 0.0
    return removed


def test_a_linear_net_in_closed_form():
    found = transform.sensitivity(line(1, -2, 3, 4), [(EYE, TRUTH)], loss=F.mse_loss)
    [row] = found.rows
    # w = (0, 0, 3, 4): the squared errors are 1, 4, 0, 0.
    assert (row.layer, row.sparsity, row.weights, row.removed) == ("0", 0.5, 4, 2)
    assert (row.loss_before, row.loss_after, row.change) == (0.0, 1.25, 1.25)
    # A fully connected weight: 200 from DRAM, 6 cache, 1 register file, 3 for its MAC.
    assert (row.bytes, row.energy, row.macs) == (8, 420, 2)
    assert (row.per_byte, row.per_energy, row.per_mac) == (1.25 / 8, 1.25 / 420, 1.25 / 2)
    assert (row.metric_before, row.metric_after, found.metric) == (None, None, None)
    assert (found.loss, found.samples) == ("mse_loss", 4)


def test_unlabelled_data_measure_the_relative_change_of_the_outputs():
    found = transform.sensitivity(line(1, -2, 3, 4), [EYE[:3], EYE[3:]], sparsity=(0.5, 1))
    assert found.loss == "relative output change"
    assert [row.loss_after for row in found.rows] == pytest.approx([5 / 30, 1.0], abs=1e-15)
    assert [row.loss_before for row in found.rows] == [0.0, 0.0]
    assert "relative output change" in str(found)


def test_samples_weigh_the_same_in_batches_of_any_size():
    parts = [(EYE[:1], TRUTH[:1]), (EYE[1:], TRUTH[1:])]
    [row] = transform.sensitivity(line(1, -2, 3, 4), parts, loss=F.mse_loss).rows
    assert row.loss_after == pytest.approx(1.25)


def test_equal_to_doing_it_by_hand_on_a_convolutional_net():
    model, data = conv()
    found = transform.sensitivity(model, data, sparsity=(0.3, 0.9), hardware="eyeriss")
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    device, dense = torch.device("cpu"), transform.analyze(model, inputs)
    keys = [(row.layer, row.sparsity) for row in found.rows]
    assert keys == [("conv", 0.3), ("conv", 0.9), ("head", 0.3), ("head", 0.9)]
    for row in found.rows:
        expected = copy.deepcopy(model).eval()
        parameter = expected.get_submodule(row.layer).weight
        assert row.removed == pruned_by_hand(parameter, row.sparsity)
        with torch.no_grad():
            loss = F.cross_entropy(expected(inputs), targets)
        assert row.loss_after == pytest.approx(float(loss), rel=1e-6)
        assert row.metric_after == pytest.approx(evaluate(expected, data, device))
        sparse = transform.analyze(expected, inputs)
        saved = dense[row.layer].energy.relaxed - sparse[row.layer].energy.relaxed
        assert row.energy == saved == dense.total.energy.relaxed - sparse.total.energy.relaxed
        assert row.bytes == 4 * row.removed
        assert row.macs * row.weights == dense[row.layer].macs * row.removed
        assert row.metric_before == pytest.approx(evaluate(model, data, device))
    assert found.metric == "top-1"


def test_beyond_the_weight_cache_energy_falls_at_the_steeper_price():
    model = nn.Sequential(nn.Conv2d(16, 64, 3))  # 9,216 weights; the cache holds 4,096
    example = torch.randn(1, 16, 20, 20)
    [row] = transform.sensitivity(model, [example], sparsity=0.9).rows
    expected = copy.deepcopy(model)
    pruned_by_hand(expected[0].weight, 0.9)
    energies = [transform.analyze(net, example).total.energy.relaxed for net in (model, expected)]
    assert row.energy == energies[0] - energies[1]


def test_weights_that_are_zero_already_save_nothing():
    found = transform.sensitivity(
        line(0, 0, 0, 4), [(EYE, TRUTH)], loss=F.mse_loss, sparsity=(0.5, 0.75, 1.0)
    )
    assert [row.removed for row in found.rows] == [0, 0, 1]
    assert [row.per_energy for row in found.rows[:2]] == [None, None]
    assert found.rows[0].change == 0
    # The least harm comes first, and what saves nothing is of no use.
    assert [row.sparsity for row in found.ranked("bytes")] == [1.0, 0.5, 0.75]


def test_tied_weights_are_one_layer_and_count_all_uses():
    model, example = made(TiedNet)
    labels = torch.tensor([0, 1, 2])
    found = transform.sensitivity(model, [(example, labels)])
    assert [row.layer for row in found.rows] == ["first", "head"]
    [tied, _] = found.rows
    assert (tied.removed, tied.bytes, tied.macs) == (32, 128, 64)
    expected = copy.deepcopy(model)
    pruned_by_hand(expected.first.weight, 0.5)
    with torch.no_grad():
        loss = float(F.cross_entropy(expected(example), labels))
    assert tied.loss_after == pytest.approx(loss)
    assert "tied with second" in tied.note


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x[:, :3] * 2, x[:, :3] + 1)[0]


def test_parts_of_a_packed_parameter_are_pruned_on_their_own():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = Attention().eval(), torch.randn(2, 5, 8)
    found = transform.sensitivity(model, [example])
    parts = [row for row in found.rows if "[" in row.layer]
    assert sum(row.weights for row in parts) == 3 * 64
    start = 0
    with torch.no_grad():
        before = model(example)
        for row in sorted(parts, key=lambda r: int(r.layer.partition("[")[2].partition(":")[0])):
            expected = copy.deepcopy(model)
            rows = row.weights // 8
            pruned_by_hand(expected.attention.in_proj_weight[start : start + rows], 0.5)
            change = (expected(example) - before).square().sum() / before.square().sum()
            assert row.loss_after == pytest.approx(float(change), rel=1e-5)
            start += rows


@pytest.mark.parametrize("net", [HoldsOwnLeaf, Branching, Recurrent, TwoInputs])
def test_leaves_recurrent_layers_and_several_inputs(net):
    model, example = made(net)
    item = {"inputs": example}
    found = transform.sensitivity(model, [item], sparsity=1.0)
    assert all(row.removed == row.weights and row.loss_after > 0 for row in found.rows)
    # Zeroing everything by hand, one parameter at a time.
    by_name = {f"{row.layer}": row for row in found.rows}
    for name, parameter in model.named_parameters():
        row = by_name.get(name.removesuffix(".weight"))
        if row is None:
            continue
        expected = copy.deepcopy(model).eval()
        expected.get_parameter(name).data.zero_()
        args = example if isinstance(example, tuple) else (example,)
        with torch.no_grad():
            after, before = expected(*args), copy.deepcopy(model).eval()(*args)
        if isinstance(after, dict):
            after, before = after["scores"], before["scores"]
        ratio = float((after - before).square().sum() / before.square().sum())
        assert row.loss_after == pytest.approx(ratio, rel=1e-5)
        assert parameter.numel() == row.weights
        del by_name[row.layer]
    assert not by_name


def bits(model):
    return {
        name: tensor.contiguous().view(torch.uint8).clone() if tensor.dim() else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def test_the_model_and_the_global_state_are_left_alone():
    model, data = conv()
    model.conv.weight.data[0, 0, 0] = -0.0
    model.norm.eval()
    before, versions = bits(model), [p._version for p in model.parameters()]
    inputs = data[0][0].clone()
    torch.manual_seed(11)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    loader = DataLoader([(x, y) for x, y in data], batch_size=None, shuffle=True)
    transform.sensitivity(model, loader)
    assert all(torch.equal(before[name], value) for name, value in bits(model).items())
    assert [p._version for p in model.parameters()] == versions
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert python_state == random.getstate()
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(inputs, data[0][0])


def test_nothing_is_left_behind_after_an_error():
    model, data = conv()
    before, calls = bits(model), []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) == 5:  # while the first layer is pruned
            raise ZeroDivisionError("mine")
        return F.cross_entropy(outputs, targets)

    with pytest.raises(ArgumentError, match="while 'conv' is pruned: ZeroDivisionError: mine"):
        transform.sensitivity(model, data, loss=failing)
    assert all(torch.equal(before[name], value) for name, value in bits(model).items())
    assert model.training


class Stirred(nn.Module):
    """Changes its input in place, counts its calls in a buffer, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x.add_(1)) * self.calls + torch.rand(3)


def test_every_layer_is_measured_under_the_same_conditions():
    model, x = Stirred(), torch.ones(2, 4)
    first, second = (transform.sensitivity(model, [x], sparsity=s) for s in ((0.5,), (0.25, 0.5)))
    assert first.rows[0] == second.rows[1]
    assert torch.equal(x, torch.ones(2, 4))
    assert model.calls == 0


def test_data_are_read_once():
    model, data = conv()
    expected = transform.sensitivity(model, data)
    assert transform.sensitivity(model, iter(data)) == expected
    assert transform.sensitivity(model, (item for item in data)) == expected
    reads = []

    class Counted(list):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    assert transform.sensitivity(model, Counted(data)) == expected
    assert len(reads) == 1


def test_the_first_batches_only():
    model, data = conv()

    def endless():
        while True:
            yield from data

    limited = transform.sensitivity(model, endless(), batches=2)
    assert limited == transform.sensitivity(model, data[:2])
    assert limited.samples == 8


def test_costs_are_those_of_the_example_inputs():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1))
    data = [torch.ones(1, 1, 5, 5)]
    [own] = transform.sensitivity(model, data).rows
    [larger] = transform.sensitivity(model, data, example_inputs=torch.ones(1, 1, 8, 8)).rows
    assert (own.macs, larger.macs) == (9 * 9, 9 * 36)
    assert own.loss_after == larger.loss_after


def test_a_shuffled_loader_gives_the_same_twice():
    model, data = conv()
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=3, shuffle=True)
    torch.manual_seed(1)
    first = transform.sensitivity(model, loader, batches=2)
    torch.manual_seed(2)
    assert transform.sensitivity(model, loader, batches=2) == first


def test_metrics_of_ones_own():
    model, data = conv()

    def error_rate(outputs, targets):
        return float((outputs.argmax(1) != targets).float().mean())

    class Wrong:
        def reset(self):
            self.count = self.total = 0

        def update(self, outputs, targets):
            self.count += int((outputs.argmax(1) != targets).sum())
            self.total += len(targets)

        def compute(self):
            return self.count / self.total

    top1 = transform.sensitivity(model, data)
    for metric, name in ((error_rate, "error_rate"), (Wrong(), "Wrong")):
        found = transform.sensitivity(model, data, metric=metric)
        assert found.metric == name
        for own, row in zip(found.rows, top1.rows, strict=True):
            assert own.metric_after == pytest.approx(1 - row.metric_after)
            assert own.metric_before == pytest.approx(1 - row.metric_before)


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["conv", "head"]),
        ("h*", ["head"]),
        (nn.Conv2d, ["conv"]),
        (lambda name, module: name == "head", ["head"]),
        (["head", "conv"], ["conv", "head"]),
        ({"conv": False}, ["head"]),
        ({"conv": {"max_sparsity": 0.6}}, ["conv", "head", "head"]),
    ],
)
def test_layers_are_chosen(layers, expected):
    model, data = conv()
    shares = (0.5, 0.7) if len(expected) == 3 else (0.5,)
    found = transform.sensitivity(model, data, layers=layers, sparsity=shares)
    assert [row.layer for row in found.rows] == expected
    whole = {(row.layer, row.sparsity): row for row in transform.sensitivity(model, data).rows}
    assert all(whole.get((row.layer, row.sparsity), row) == row for row in found.rows)


def test_a_layer_of_one_weight_is_left_out_too():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 4))
    found = transform.sensitivity(model, [torch.ones(2, 1)], layers={"0": False})
    assert [(row.layer, row.removed) for row in found.rows] == [("1", 2)]


def test_the_result_is_json_and_a_readable_table():
    model, data = conv()
    found = transform.sensitivity(model, data, sparsity=(0.3, 0.9))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["per_mac"] for row in values["rows"]] == [row.per_mac for row in found.rows]
    assert (values["loss"], values["metric"], values["samples"]) == ("cross entropy", "top-1", 11)
    text = str(found)
    lines = text.strip().splitlines()
    order = [line.split()[:2] for line in lines[2:6]]
    expected = [[row.layer, f"{100 * row.sparsity:g}"] for row in found.ranked("energy")]
    assert order == expected
    assert max(map(len, lines)) <= 118
    first = found.ranked("macs")[0]
    assert f"{first.per_mac:.2e} (1)" in text
    assert f"before: loss {first.loss_before:.4g} (cross entropy)" in text
    assert "hardware eyeriss" in lines[-1]
