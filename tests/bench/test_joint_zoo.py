"""The table of one-shot budgets: what a row says is what the result says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench import joint_zoo


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One small network in place of torchvision's."""

    def network(name):
        torch.manual_seed(0)
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(3, 8, 9, stride=9), pool, nn.Flatten(), nn.Linear(8, 5))

    monkeypatch.setattr(joint_zoo, "_network", network)


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget", ["weight_bits<=12.5%", pytest.param("archive<=12.5%", marks=pytest.mark.slow)]
)
def test_a_row_tells_what_was_reached(budget):
    row = joint_zoo.project("small", budget)
    assert (row.network, row.budget, row.holds) == ("small", budget, True)
    assert 0 < row.reached <= row.maximum
    assert 0 < row.nonzeros <= 1
    if budget.startswith("weight_bits"):
        assert row.maximum == 32 * (3 * 8 * 81 + 40) // 8


def test_the_table_and_the_files(tmp_path, monkeypatch, capsys):
    row = joint_zoo.Row("net", "archive<=10%", 2000, 1990, True, 0.25, 3.2)
    monkeypatch.setattr(joint_zoo, "project", lambda network, budget: row)
    joint_zoo.main(tmp_path, "net", "archive<=10%")
    line = "| net | archive<=10% | 2,000 | 1,990 | 99.50% | 25.0% | 3 |"
    assert capsys.readouterr().out == line + "\n"
    assert (tmp_path / "joint-zoo.md").read_text().splitlines()[-1] == line
    assert json.loads((tmp_path / "joint-zoo.json").read_text())["rows"][0]["reached"] == 1990
