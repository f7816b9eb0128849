"""Rows, kernels and filters live and die as wholes, and the number of weights holds."""

from __future__ import annotations

import pytest
import torch
from sparse_training_runs import IMAGES, LABELS, conv_net, nonzeros, same, trained, watched
from torch import nn

from passes.methods.sparse_training.start import output_units

BATCHES = [(IMAGES[i : i + 16], LABELS[i : i + 16]) for i in range(0, 48, 16)]
LEADING = {"weights": 4, "rows": 3, "kernels": 2, "filters": 1}


class Mixed(nn.Module):
    """3x3, transposed in two groups, 1x1, 3x3 in four groups, and a head."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(1, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.point = nn.Conv2d(4, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.head = nn.Linear(8 * 16, 2)

    def forward(self, x):
        hidden = self.up(torch.relu(self.plain(x)))
        hidden = self.grouped(torch.relu(self.point(torch.relu(hidden))))
        return self.head(torch.relu(hidden).flatten(1))


SHAPES = {
    "plain": (6, 1, 3, 3),
    "up": (6, 2, 3, 3),
    "point": (8, 4, 1, 1),
    "grouped": (8, 2, 3, 3),
    "head": (2, 128),
}


def mixed():
    torch.manual_seed(0)
    return Mixed()


def block_of(name, granularity):
    shape = SHAPES[name]
    return int(torch.tensor(shape[LEADING[granularity] :]).prod()) if len(shape) == 4 else 1


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", ["dsr_exact", "rigl"])
@pytest.mark.parametrize("granularity", ["rows", "kernels", "filters"])
def test_cells_are_whole_and_the_count_is_exact(granularity, rule, monkeypatch):
    seen = watched(monkeypatch)
    options = {"granularity": granularity, "rule": rule, "start": "uniform", "share": 0.4}
    result = trained("nonzeros<=30%", model=mixed(), data=BATCHES, **options)
    total = 54 + 108 + 32 + 144 + 256
    assert seen.active() == [total * 30 // 100] * len(seen.events)
    assert sum(seen.moved()) > 20
    for name in SHAPES:
        block = block_of(name, granularity)
        first = seen.values[0][name].reshape(-1, block) != 0
        assert torch.equal(first.all(dim=1), seen.first[0][name])
        assert torch.equal(first.any(dim=1), seen.first[0][name])
        last = seen.stored[0][name].reshape(-1, block) != 0
        assert not bool(last[~seen.last[0][name]].any()) and bool(last.all(dim=1).any())
    assert sum(nonzeros(result.model).values()) <= total * 30 // 100


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_without_single_weights_the_ledger_is_below_one_cell(granularity, monkeypatch):
    seen = watched(monkeypatch)
    model = nn.Sequential(
        nn.Conv2d(1, 6, (3, 1)), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    options = {"rule": "dsr_exact", "granularity": granularity, "share": 0.5, "start": "uniform"}
    trained("nonzeros<=60%", model=model, data=BATCHES, layers={"5": False}, epochs=8, **options)
    first = sum(int(m.sum()) * {"0": 3, "2": 9}.get(n, 1) for n, m in seen.first[0].items())
    if granularity == "filters":
        first = int(seen.first[0]["0"].sum()) * 3 + int(seen.first[0]["2"].sum()) * 54 + 16
    largest = 9 if granularity == "kernels" else 54
    assert sum(seen.moved()) > 0
    assert all(0 <= first - active < largest for active in seen.active())
    assert seen.active()[-1] + seen.engine.carried == first


def test_cells_moved_one_for_one_would_lose_a_sixth(monkeypatch):
    """The authors' allocation counts cells: kernels of 9 weights turn into kernels of one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.mul_(0.1)
    seen = watched(monkeypatch)
    options = {"rule": "dsr_exact", "granularity": "kernels", "share": 0.2, "start": "uniform"}
    layers = {"0": False, "6": False}
    trained("nonzeros<=25%", model=model, data=BATCHES, layers=layers, epochs=2, **options)
    moment, blocks = seen.events[0], {"1": 9, "3": 1}
    before = sum(int(moment.before[n].sum()) * b for n, b in blocks.items())
    kept = {n: int((moment.before[n] & moment.after[n]).sum()) for n in blocks}
    gone = sum(moment.row["dropped"].values())
    theirs = sum((k + gone * k / sum(kept.values())) * blocks[n] for n, k in kept.items())
    assert theirs < 0.9 * before
    for event in seen.events:
        assert sum(int(event.after[n].sum()) * b for n, b in blocks.items()) == before


@pytest.mark.spread(1)
@pytest.mark.parametrize("granularity", ["weights", "rows", "kernels", "filters"])
def test_output_units_of_every_cell(granularity, monkeypatch):
    seen = watched(monkeypatch)
    options = {"rule": "static", "granularity": granularity, "keep_units": True, "epochs": 1}
    trained("nonzeros<=30%", model=mixed(), data=BATCHES, **options)
    for member in seen.engine.members:
        name, block = member.site.name, member.shape.block
        shape = SHAPES[name]
        owner = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        if name == "up":  # (inputs, outputs per group): three inputs in each of two groups
            outputs = torch.arange(shape[1])[None] + 2 * (torch.arange(shape[0]) // 3)[:, None]
            owner = outputs[:, :, None, None].expand(shape)
        rows = owner.reshape(-1, block)
        if bool((rows != rows[:, :1]).any()):
            assert member.units is None
            assert name == "up" and granularity == "filters"
        else:
            assert torch.equal(member.units, rows[:, 0])
            assert output_units(seen.engine.graph, member.site, member.shape) is not None


def test_amounts_in_cells_count_cells(monkeypatch):
    seen = watched(monkeypatch)
    options = {"rule": "dsr_exact", "granularity": "kernels", "cells": 12, "start": "uniform"}
    trained("nonzeros<=50%", layers={"5": False}, decay="constant", **options)
    assert set(seen.moved()) == {12}


def test_energy_holds_for_cells_as_well(monkeypatch):
    seen = watched(monkeypatch)
    result = trained("energy<=65%", rule="dsr_exact", granularity="kernels", epochs=2)
    assert result.certificate.holds
    for moment in seen.events:
        assert seen.engine.fits(moment.counts)
        assert not seen.engine.fits([n + 18 for n in moment.counts])


def test_single_weights_are_the_default(monkeypatch):
    runs = []
    for options in ({}, {"granularity": "weights"}):
        seen = watched(monkeypatch)
        trained(rule="dsr_exact", model=conv_net(), epochs=2, **options)
        runs.append(seen.masks())
    assert same(*runs)
