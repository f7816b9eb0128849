"""Every benchmark runs on a small network; no time is asserted, only what was measured."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import bench.speed.__main__ as command
import bench.speed.memory as memory
from bench.errors import BenchError
from bench.speed.deployed import measure_column_groups, measure_half_channels
from bench.speed.imports import import_seconds, measure_import
from bench.speed.memory import extra_bytes, measure_memory
from bench.speed.projection import measure_projection
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings
from bench.speed.structure import measure_groups, measure_shrink
from bench.speed.subjects import ALEXNET, RESNET50, Subject, concatenated
from bench.speed.subprocesses import run_python
from bench.speed.suite import BENCHMARKS, run_suite
from bench.speed.training import measure_training
from bench.speed.verbs import measure_analyze, measure_compress
from energy_model.errors import ArgumentError

LENET = Subject("LeNet-5", "bench.zoo:lenet5", (1, 1, 32, 32))
ONCE = Settings(rounds=1)
TWICE = Settings(rounds=2)


def positive(ratio):
    return all(measured > 0 and base > 0 for measured, base in ratio.pairs)


def test_a_subject_is_reproducible_and_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    one, two, other = LENET.model(), LENET.model(), LENET.model(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not one.training
    weights = [model.state_dict()["features.0.weight"] for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert LENET.example().shape == (1, 1, 32, 32)


def test_a_problem_has_the_prices_and_minimums_of_one_shot_compression():
    problem = LENET.problem("energy<=50%")
    sizes = [weight.numel() for weight in problem.weights]
    assert sizes == [150, 2400, 48000, 10080, 840]
    assert problem.minimums == (3, 48, 960, 202, 17)  # 2 %, rounded up
    # A weight of the first layer is used at 28 x 28 positions, one of the last once.
    first, last = problem.ladders[0].charges_at(0)[0], problem.ladders[-1].charges_at(0)[0]
    assert first > 10 * last
    assert concatenated(problem).numel() == sum(sizes)


@pytest.mark.parametrize(("subject", "sites"), [(ALEXNET, 8), (RESNET50, 54)])
def test_the_large_subjects_are_the_ones_named(subject, sites):
    with torch.device("meta"):
        model = subject.model()
    weights = [p for name, p in model.named_parameters() if p.dim() > 1]
    millions = {8: 61, 54: 25}[sites]
    assert len(weights) == sites
    assert sum(p.numel() for p in weights) // 10**6 == millions


@pytest.mark.slow
def test_projection():
    found = measure_projection(LENET, TWICE, ("energy<=60%", "energy<=80%"))
    assert [len(ratio.pairs) for ratio in found.ratios] == [2, 2]
    assert {ratio.target for ratio in found.ratios} == {0.15}
    assert all(map(positive, found.ratios))
    # Both budgets are compared with the same sorts.
    assert [pair[1] for pair in found.ratios[0].pairs] == [p[1] for p in found.ratios[1].pairs]
    assert [check.holds for check in found.checks] == [True, True]
    assert "of 61,470 weights kept, 0 differ" in found.checks[0].detail


@pytest.mark.slow
def test_compress_and_analyze():
    [compressed] = measure_compress(LENET, TWICE, "energy<=60%").ratios
    [analyzed] = measure_analyze(LENET, ONCE).ratios
    assert (compressed.target, compressed.base, len(compressed.pairs)) == (1, "torch.sort", 2)
    assert (analyzed.target, analyzed.base, len(analyzed.pairs)) == (5, "a forward pass", 3)
    assert positive(compressed)
    assert positive(analyzed)


@pytest.mark.slow
def test_groups_and_shrinking():
    [found] = measure_groups(LENET, ONCE).ratios
    assert (found.target, found.base, len(found.pairs)) == (2, "tracing it", 3)
    assert positive(found)
    [check] = measure_shrink(LENET, TWICE).checks
    assert check.name == "removing half the channels of LeNet-5 takes at most 1 s"
    assert check.detail.startswith("median of 2: ")


@pytest.mark.slow
def test_deployed_files():
    [channels] = measure_half_channels(LENET, ONCE).ratios
    assert channels.name == "LeNet-5 with half its channels, ONNX Runtime, 1 thread"
    assert len(channels.pairs) == 3
    found = measure_column_groups(ONCE, width=64, rows=16).ratios
    assert [ratio.name[-8:] for ratio in found] == [" batch 1", "batch 16"]
    assert all(map(positive, (channels, *found)))


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    [found] = measure_memory(LENET, ONCE, ("energy<=60%",)).ratios
    [(extra, weights)] = found.pairs
    assert (found.unit, found.target) == ("bytes", 1.5)
    assert weights == 61_470 * 4
    assert extra < 1e9


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [True, False], ids=["VmHWM", "sampled"])
def test_extra_bytes_sees_memory_that_was_freed_again(kernel, monkeypatch, tmp_path):
    if not kernel:
        monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder cannot be written to
    size = 64_000_000
    passing = extra_bytes(lambda: np.ones(size, dtype=np.uint8).sum())
    assert size * 0.9 < passing < size * 1.5
    assert extra_bytes(lambda: None) < size * 0.25


def test_import_of_fast_modules():
    [found] = measure_import(ONCE, "json.tool", "json", target=10).ratios
    assert (found.name, found.base) == ("import json.tool", "import json")
    assert len(found.pairs) == 3
    assert positive(found)


def test_a_failing_process_is_quoted():
    with pytest.raises(BenchError, match="no_such_module_here"):
        import_seconds("no_such_module_here")
    with pytest.raises(BenchError, match="did not end within"):
        run_python("-c", "import time; time.sleep(60)", timeout=0.2)


def fake(ratio, holds=True):
    """A benchmark that says what torch's threads were, and finds `ratio`."""

    def run(settings):
        assert torch.get_num_threads() == settings.threads
        found = Ratio("mine", "theirs", 1.0, ((ratio, 1.0),))
        return Outcome((found,), (Check("same", holds, ""),))

    return run


def test_suite_runs_what_is_named_and_restores_the_threads():
    before, said = torch.get_num_threads(), []
    known = {"a": fake(0.5), "b": fake(2.0)}
    settings = Settings(rounds=1, threads=before + 1)
    assert run_suite(["a"], settings, said.append, known).met
    everything = run_suite([], settings, said.append, known)
    assert [ratio.median for ratio in everything.outcome.ratios] == [0.5, 2.0]
    assert not everything.met
    assert [line.split()[1] for line in said] == ["a", "a", "b"]
    assert torch.get_num_threads() == before


def test_suite_refuses_an_unknown_name_before_measuring():
    with pytest.raises(ArgumentError, match="Did you mean 'projection'"):
        run_suite(["projektion"], ONCE, lambda line: None)


@pytest.fixture
def invoke(monkeypatch):
    """Run the command with the benchmarks replaced."""
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(command.main)

    def run(known, *arguments):
        monkeypatch.setattr(run_suite, "__defaults__", (known,))
        monkeypatch.setattr(sys, "argv", ["speed", *arguments])
        return CliRunner().invoke(app, list(arguments))

    return run


def test_command_prints_json_and_writes_a_page(invoke, tmp_path):
    page = tmp_path / "new" / "speed.md"
    done = invoke({"a": fake(0.5)}, "a", "--json", "--rounds", "3", "--out", str(page))
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert data["conditions"]["rounds"] == 3
    assert data["ratios"][0]["ratio"] == 0.5
    assert f"    python -m bench.speed a --json --rounds 3 --out {page}\n" in page.read_text()


@pytest.mark.parametrize(
    ("known", "arguments", "code"),
    [
        ({"a": fake(2.0)}, [], 0),
        ({"a": fake(0.5)}, ["--check"], 0),
        ({"a": fake(2.0)}, ["--check"], 1),
        ({"a": fake(0.5, holds=False)}, ["--check"], 1),
        ({"a": fake(0.5)}, ["b"], 2),
        ({"a": fake(0.5)}, ["--rounds", "0"], 2),
    ],
)
def test_exit_codes(invoke, known, arguments, code):
    done = invoke(known, *arguments)
    assert done.exit_code == code
    assert ("error: " in done.stderr) == (code == 2)


def test_every_benchmark_of_the_command_is_named_in_its_help(invoke):
    text = " ".join(invoke({}, "--help").stdout.split())
    assert all(name in text for name in BENCHMARKS)


@pytest.mark.slow
def test_training_with_projections_is_compared_with_training_without():
    [ratio] = measure_training(LENET, TWICE, batch=4).ratios
    assert len(ratio.pairs) == 2
    assert positive(ratio)
    assert ratio.target == 1.05
    assert "10 projected steps of LeNet-5, batch 4" in ratio.name
