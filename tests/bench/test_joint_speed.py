from __future__ import annotations

import json

import pytest
import torch

from bench.joint_speed import (
    joint_round,
    layers_of,
    measure,
    measure_allocations,
    measure_round,
    print_memory,
    random_layers,
)
from bench.speed.ratio import Outcome
from bench.speed.rounds import Settings
from bench.speed.subjects import Subject

# More than a second each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

SMALL = Subject("LeNet-5", "bench.zoo.lenet5:lenet5", (1, 1, 28, 28))


def test_a_round_meets_its_budget():
    weights, budget = layers_of(SMALL)
    assert all(weight.dim() in (2, 4) for weight in weights)
    assert budget == sum(weight.numel() for weight in weights)
    found = joint_round(weights, budget)
    assert found.exact
    assert 0.9 * budget < found.size <= budget


def test_what_is_reported(monkeypatch):
    answer = json.dumps({"extra": 300, "weights": 200})
    monkeypatch.setattr("bench.joint_speed.run_python", lambda *_: answer)
    outcome = measure_round(SMALL, Settings(rounds=1, threads=1))
    speed, memory = outcome.ratios
    assert speed.base == "torch.sort"
    assert speed.target == 5.0
    assert len(speed.pairs) == 1
    assert memory.median == 1.5
    assert outcome.checks[0].holds


def test_the_whole_report_reads_well(monkeypatch):
    answer = json.dumps({"extra": 300, "weights": 200})
    monkeypatch.setattr("bench.joint_speed.run_python", lambda *_: answer)
    monkeypatch.setattr("bench.joint_speed.measure_allocations", lambda _: Outcome())
    threads = torch.get_num_threads()
    report = measure(Settings(rounds=1, threads=1), SMALL)
    assert torch.get_num_threads() == threads
    text = report.markdown("python -m bench.joint_speed")
    for words in ("1 interleaved rounds", "one joint round of LeNet-5", "1.500x", "at most 5x"):
        assert words in text
    assert json.dumps(report.to_dict())


def test_memory_is_measured_in_bytes(capsys):
    threads = torch.get_num_threads()
    print_memory("LeNet-5", SMALL.factory, "1,1,28,28", str(threads))
    found = json.loads(capsys.readouterr().out)
    weights, _ = layers_of(SMALL)
    assert found["weights"] == 4 * sum(weight.numel() for weight in weights)
    assert found["extra"] >= 0


def test_allocations_are_exact():
    costs, counts = random_layers(0)
    assert costs.shape == (60, 8)
    assert counts.shape == (60,)
    (check,) = measure_allocations([0], bits=(3.3,)).checks
    assert check.detail.startswith("1 of 1 exact")
