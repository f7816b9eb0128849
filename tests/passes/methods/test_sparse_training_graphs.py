"""Rewiring a traced model is rewiring the eager one: a reference in plain torch agrees."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from sparse_training_runs import (
    BATCHES,
    IMAGES,
    LABELS,
    ROW_BATCHES,
    conv_net,
    same,
    trained,
    watched,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from passes.dynamic.grow import at_random
from passes.dynamic.random_keys import key_of


class Functional(nn.Module):
    """Weights that no layer owns, used by functions: `w` twice."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(12, 16)
        self.w = nn.Parameter(torch.randn(16, 16) / 4)
        self.out = nn.Parameter(torch.randn(2, 16) / 4)

    def forward(self, x):
        hidden = torch.relu(F.linear(self.enter(x), self.w))
        return F.linear(torch.relu(F.linear(hidden, self.w)), self.out)


class Tied(nn.Module):
    """Two layers with one weight, one of them called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        hidden = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.first(hidden)))


class Grouped(nn.Module):
    """A grouped convolution, a depthwise one, a norm and a residual."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.depth = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        hidden = torch.relu(self.norm(self.enter(x)))
        hidden = torch.relu(hidden + self.grouped(hidden))
        return self.head(torch.relu(self.depth(hidden)).flatten(1))


class Chain(nn.Sequential):
    """Plain layers."""

    def __init__(self):
        super().__init__(*conv_net())


NETS = {
    "plain layers": (Chain, ["0.weight", "2.weight", "5.weight"], BATCHES),
    "functional": (Functional, ["enter.weight", "w", "out"], ROW_BATCHES),
    "tied": (Tied, ["first.weight", "head.weight"], ROW_BATCHES),
    "grouped": (
        Grouped,
        ["enter.weight", "grouped.weight", "depth.weight", "head.weight"],
        BATCHES,
    ),
}
EVERY, SHARE, EPOCHS = 2, 0.3, 3
TRAIN = {"schedule": "constant", "nesterov": True, "weight_decay": 1e-3}


@dataclass
class Eager:
    """Sparse training of an eager module, by hand.

    Stored weights are zero where nothing is active, so that the gradient of a parameter is the
    dense gradient of its layer; the optimizer is given what is left of it under the mask.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    rule: str
    seed: int
    history: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self, batches):
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name] for name in self.masks}  # of equal cells the first goes
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        steps = EPOCHS * len(batches)
        stop = 0.75 * steps if self.rule in ("rigl", "dsr_plus") else steps
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~self.masks[name], 0)
        self.model.train()
        for step in range(steps):
            inputs, targets = batches[step % len(batches)]
            optimizer.zero_grad()
            F.cross_entropy(self.model(inputs), targets).backward()
            dense = {name: weight.grad.clone() for name, weight in weights.items()}
            for name, weight in weights.items():
                weight.grad.masked_fill_(~self.masks[name], 0)
            optimizer.step()
            if 0 < step < stop and step % EVERY == 0:
                cosine = self.rule in ("rigl", "dsr_plus")
                share = SHARE * ((1 + math.cos(math.pi * step / stop)) / 2 if cosine else 1)
                self.rewire(weights, dense, share, optimizer)

    def rewire(self, weights, dense, share, optimizer):
        values = {n: w.detach().reshape(-1) for n, w in weights.items()}
        masks = {n: m.reshape(-1) for n, m in self.masks.items()}
        scores = values
        if self.rule == "dsr_plus":
            scores = {n: v * dense[n].reshape(-1) for n, v in values.items()}
        gone = self.drop(scores, masks, share)
        lost = {n: int(g.sum()) for n, g in gone.items()}
        kept = {n: int(m.sum()) - lost[n] for n, m in masks.items()}
        damping = {"dsr_exact": 1.0, "dsr_plus": 0.1}.get(self.rule)
        counts = lost if damping is None else by_survivors(kept, lost, damping)
        for name, mask in masks.items():
            gradient = self.rule in ("rigl", "dsr_plus")
            free = ~mask | gone[name] if gradient else ~mask
            if gradient:
                scores = dense[name].reshape(-1).abs().masked_fill(~free, -1)
                new = torch.zeros_like(mask)
                new[scores.sort(descending=True, stable=True).indices[: counts[name]]] = True
            else:
                site = name.removesuffix(".weight")
                key = key_of(self.seed, len(self.history) + 1, site)
                new = at_random(free, counts[name], key)
            changed = (gone[name] & ~new) | (new & ~mask)
            after = (mask & ~gone[name]) | new
            shape = weights[name].shape
            self.masks[name] = after.reshape(shape)
            with torch.no_grad():
                weights[name].masked_fill_(changed.reshape(shape), 0)
            optimizer.state[weights[name]]["momentum_buffer"][changed.reshape(shape)] = 0
        self.history.append({n.removesuffix(".weight"): m for n, m in self.masks.items()})

    def drop(self, values, masks, share):
        """The smallest of all layers together, or of each."""
        if self.rule in GLOBAL:
            together = torch.cat([v.abs().masked_fill(~masks[n], 9e9) for n, v in values.items()])
            active = sum(int(m.sum()) for m in masks.values())
            flat = torch.zeros_like(together, dtype=torch.bool)
            flat[together.sort(stable=True).indices[: round(share * active)]] = True
            parts = flat.split([v.numel() for v in values.values()])
            return dict(zip(values, parts, strict=True))
        gone = {}
        for name, value in values.items():
            magnitude = value.abs().masked_fill(~masks[name], 9e9)
            gone[name] = torch.zeros_like(masks[name])
            count = round(share * int(masks[name].sum()))
            gone[name][magnitude.sort(stable=True).indices[:count]] = True
        return gone


GLOBAL = ("dsr_exact", "dsr_plus")


def by_survivors(kept, lost, damping):
    """Shares by what is left and what was lost, by the method of largest remainders."""
    total = sum(lost.values())
    ideal = {
        name: (1 - damping) * lost[name] + damping * total * n / sum(kept.values())
        for name, n in kept.items()
    }
    counts = {name: math.floor(share) for name, share in ideal.items()}
    rest = sorted(ideal, key=lambda name: counts[name] - ideal[name])
    for name in rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["rigl", "dsr_plus", "dsr_exact", "set_uniform"])
@pytest.mark.parametrize("net", NETS)
def test_the_traced_model_rewires_as_the_eager_one(net, rule, monkeypatch):
    make, names, data = NETS[net]
    torch.manual_seed(3)
    model = make()
    eager = copy.deepcopy(model)
    seen = watched(monkeypatch)
    options = {"rule": rule, "start": "uniform", "share": SHARE, "every": EVERY, "rescale": False}
    result = trained("nonzeros<=40%", model=model, data=data, epochs=EPOCHS, train=TRAIN, **options)
    parameters = dict(eager.named_parameters())
    sites = {name.removesuffix(".weight"): name for name in names}
    assert seen.first[0].keys() == sites.keys()  # one site for each storage
    masks = {sites[n]: m.reshape(parameters[sites[n]].shape) for n, m in seen.first[0].items()}
    reference = Eager(eager, masks, rule, seen.engine.seed)
    reference.run(data)
    assert len(reference.history) == len(seen.events) > 5
    for moment, expected in zip(seen.events, reference.history, strict=True):
        for name, mask in moment.after.items():
            assert torch.equal(mask, expected[name].reshape(-1)), (moment.step, name)
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[name])
    assert sum(seen.moved()) > 20


class Branches(nn.Module):
    """Two layers side by side, registered and called in either order."""

    def __init__(self, turned=False):
        super().__init__()
        layers = {"left": nn.Linear(12, 10), "right": nn.Linear(12, 10)}
        for name in sorted(layers, reverse=turned):
            self.add_module(name, layers[name])
        self.turned = turned
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        if self.turned:
            return self.head(torch.relu(self.right(x) + self.left(x)))
        return self.head(torch.relu(self.left(x) + self.right(x)))


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("rule", "budget"),
    [
        ("set_uniform", "nonzeros<=50%"),
        ("dsr", "nonzeros<=50%"),
        ("dsr_exact", "nonzeros<=50%"),
        ("rigl", "nonzeros<=50%"),
        # Weights that have grown without a gradient are zero in both layers.
        ("dsr_plus", "nonzeros<=50%"),
        # Of an odd number one of two equal layers gets the larger half.
        ("static", "nonzeros<=131"),
    ],
)
def test_the_order_of_layers_does_not_matter(rule, budget, monkeypatch):
    torch.manual_seed(0)
    state, runs, orders = Branches().state_dict(), [], []
    for turned in (False, True):
        model = Branches(turned)
        model.load_state_dict(state)
        seen = watched(monkeypatch)
        result = trained(budget, model=model, data=ROW_BATCHES, rule=rule, epochs=3)
        orders.append([row.layer for row in result.plan.rows])
        every = [*seen.first, *(moment.after for moment in seen.events)]
        masks = [mask[name] for mask in every for name in ("left", "right", "head")]
        final = result.model.state_dict()
        runs.append((masks, [final[name] for name in state]))
    assert orders == [["left", "right", "head"], ["right", "left", "head"]]
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])


@pytest.mark.slow
def test_workers_of_the_loader_do_not_matter():
    found = []
    for workers in (0, 2):
        torch.manual_seed(0)
        # Workers forked from a process with threads of several runtimes may wait for ever.
        apart = {"multiprocessing_context": "spawn"} if workers else {}
        data = DataLoader(
            TensorDataset(IMAGES, LABELS),
            batch_size=16,
            shuffle=True,
            num_workers=workers,
            **apart,
        )
        result = trained(data=data, rule="dsr_exact", epochs=2, every=1)
        found.append(list(result.model.state_dict().values()))
    assert same(*found)


def test_neither_the_global_generator_nor_threads_decide(monkeypatch):
    runs = []
    for seed, threads in ((0, 1), (99, 2)):
        torch.manual_seed(0)
        model = conv_net()
        torch.manual_seed(seed)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            seen = watched(monkeypatch)
            trained(model=model, rule="set_uniform", epochs=1)
        finally:
            torch.set_num_threads(before)
        runs.append([*seen.first[0].values(), *seen.masks()])
    assert same(*runs)
