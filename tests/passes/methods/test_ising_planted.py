"""Planted redundancy: every filter twice, and the search is to keep one of each pair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ising_nets import seeded
from torch import nn

import transform
from passes.methods.ising import Ising

EXAMPLE = torch.randn(4, 16, 6, 6, generator=torch.Generator().manual_seed(0))


def small_net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def trained(seed: int, width: int) -> nn.Sequential:
    model = seeded(lambda: small_net(width), seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(25):
        y = torch.randint(4, (16,), generator=generator)
        x = torch.randn(16, 16, 6, 6, generator=generator)
        x[torch.arange(16), y * 4] += 1
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def doubled(model: nn.Sequential) -> nn.Sequential:
    """Every filter twice, side by side, and half the weights where they are read."""
    found = small_net(2 * model[0].out_channels).eval()
    for layer in (0, 2):
        found[layer].weight.copy_(model[layer].weight.repeat_interleave(2, 0).repeat_interleave(
            1 if layer == 0 else 2, 1
        ) / (1 if layer == 0 else 2))  # fmt: skip
        found[layer].bias.copy_(model[layer].bias.repeat_interleave(2, 0))
    found[6].weight.copy_(model[6].weight.repeat_interleave(2, 1) / 2)
    found[6].bias.copy_(model[6].bias)
    return found


def pairs_kept(model, small) -> list[int]:
    """Of each layer, of how many pairs a filter stays: filters are known by their biases."""
    gaps = [(model[i].bias[:, None] - small[i].bias[None, :]).abs() for i in (0, 2)]
    assert max(gap.min(1).values.max() for gap in gaps) < 1e-3
    return [len(set(gap.argmin(1).tolist())) for gap in gaps]


def drawn(seed: int, count: int):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 16, 6, 6, generator=generator), torch.arange(16) % 4) for _ in range(count)
    ]


SLOW = [pytest.param(seed, kind, marks=pytest.mark.slow) for seed in range(1, 6)
        for kind in ("de", "de+ls", "ratio-de")]  # fmt: skip


@pytest.mark.parametrize(("seed", "kind"), [(0, "ratio-de"), *SLOW])
def test_one_of_each_pair_stays_and_the_outputs_are_those_of_the_small_net(seed, kind):
    width = 8 if seed < 3 else 16
    small = trained(seed, width)
    model = doubled(small)
    assert torch.allclose(model(EXAMPLE), small(EXAMPLE), atol=1e-5)
    macs = transform.analyze(small, example_inputs=EXAMPLE).total.macs  # half of every group
    result = transform.compress(
        model,
        {"macs": macs},
        example_inputs=EXAMPLE,
        method=Ising(energy="ising", search=kind, generations=10),
        train=False,
        progress="none",
    )
    assert pairs_kept(result.model, small) == [width, width]
    with torch.no_grad():  # each is read alone now
        result.model[2].weight *= 2
        result.model[6].weight *= 2
    assert torch.allclose(result.model(EXAMPLE), small(EXAMPLE), atol=1e-5)


def test_importance_alone_keeps_them_together():
    """What is alike is alike in importance: the pairs are what the energy is needed for."""
    model = doubled(trained(0, 8))
    result = transform.compress(
        model, "macs<=27%", example_inputs=EXAMPLE, method="l2", train=False, progress="none"
    )
    units = result.plan.details["units"]
    assert sum(len({u // 2 for u in kept}) < len(kept) for kept in units.values()) == 2


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_a_search_in_training_finds_them_where_the_budget_does_not_fall(seed):
    """It begins near them; a budget that falls begins with the whole net, where all is alike."""
    small = trained(seed, 8)
    result = transform.compress(
        doubled(small),
        {"macs": transform.analyze(small, example_inputs=EXAMPLE).total.macs},
        drawn(seed, 20),
        method=Ising(energy="ising", search_share=0.5, anneal=False),
        train=transform.TrainConfig(epochs=1, lr=1e-5, select="last"),
        seed=seed,
        progress="none",
    )
    assert pairs_kept(result.model, small) == [8, 8]
