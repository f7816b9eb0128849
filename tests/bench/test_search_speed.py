"""What a search costs, on networks so small that only the numbers' shape matters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from bench import search_backends, search_published, search_steps
from bench.dynamic_report import Part
from bench.dynamic_sizes import STATED
from bench.search_published import CLASSES, PUBLISHED, Overhead, Overheads, flowers_network
from bench.search_report import SearchReport
from bench.search_sizes import RESNET20, SearchSizes
from bench.search_speed import ROWS, chosen, main, measure
from bench.search_steps import _refreshing
from bench.search_training import SearchTraining, macs_of
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings
from bench.zoo.cifar_resnet import CifarResNet
from energy_model.errors import ArgumentError
from passes.ising.choose_backend import BackendChoice
from passes.methods.ising.config import Ising

pytestmark = pytest.mark.slow

TINY = replace(RESNET20, factory="bench.zoo:resnet8_gray", batch=4, input_shape=(1, 8, 8))
SMALL = SearchSizes(TINY, 1, 8, (2,), 4, 2, 64, ("squeezenet1_1",))
ONCE = Settings(rounds=1, threads=1)


@pytest.fixture(autouse=True)
def unswept(monkeypatch):
    """Garbage is collected before whatever is timed: here it would take most of the time."""
    monkeypatch.setattr("bench.speed.rounds.gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """The published ones take seconds; other tests are about them."""
    monkeypatch.setattr(search_published, "flowers_network", lambda name: CifarResNet(1, CLASSES))


def invoke(*arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


def tiny(config=None, steps=100, **changes):
    task = replace(TINY, **changes)
    return SearchTraining(task.subject.model(), task.batches(2), config, "macs<=50%", steps)


def test_steps_give_a_search_a_commit_and_a_run_for_each_energy():
    [part] = measure(["steps"], ONCE, SMALL).parts
    assert [ratio.target for ratio in part.outcome.ratios] == [2.5, 1.0, 1.0] * 3 + [1.2, 1.0, 1.0]
    for ratio in part.outcome.ratios:
        assert len(ratio.pairs) == 1
        assert all(number > 0 for pair in ratio.pairs for number in pair)
        assert math.isfinite(ratio.median)
    names = [ratio.name for ratio in part.outcome.ratios]
    cases = (
        "margin energy, macs<=50%",
        "margin energy, macs<=50%, widths in multiples of 8",
        "margin energy, macs<=25%",
        "Ising energy, macs<=50%",
    )
    assert all(case in name for case, name in zip(cases, names[::3], strict=True))
    assert all(name.endswith("% of the MACs") for name in names[1::3])
    assert names[2] == "the whole run of 8 steps, 25% of them search"
    assert [check.holds for check in part.outcome.checks] == [True] * 4


def test_the_run_is_a_quarter_search_and_what_is_paid_once():
    config = Ising(search_share=0.25, refresh=100)
    training = SimpleNamespace(method=SimpleNamespace(config=config))
    graph = tiny().graph
    compact = SimpleNamespace(graph=graph, macs=2 * macs_of(graph))
    case = search_steps._Case("margin", "macs<=50%")
    one = search_steps._Searched(case, training, once=3.0, compact=compact)
    sizes = replace(SMALL, run_steps=100)
    step, small, run = search_steps._ratios(sizes, one, [(1.0, 2.0, 12.0, 0.5)])
    mean = (2.0 + 12.0) / 2  # importances follow the weights ten times in 25 steps
    assert step.pairs == ((pytest.approx(mean), 1.0),)
    assert small.pairs == ((0.5, 1.0),)
    assert run.pairs == ((pytest.approx(3 + 25 * mean + 75 * 0.5), 100.0),)
    assert small.name == "a step after the commit, 50.0% of the MACs"


def test_seconds_are_those_of_one_step():
    row = (6.0, 8.0, 5.0, 2.0, 12.0, 7.0, 4.0)
    assert search_steps._picked(row, 0, replace(SMALL, steps=2)) == (3.0, 4.0, 5.0, 1.0)
    assert search_steps._picked(row, 1, replace(SMALL, steps=2)) == (3.0, 6.0, 7.0, 2.0)


def test_a_search_that_is_over_is_seen():
    config = Ising(states=4, energy="ising", patience=10**6)
    over, running = tiny(config, steps=4), tiny(config)
    over.step()
    running.step()
    assert running.searching and not over.searching
    searched = partial(search_steps._Searched, search_steps._Case("ising", "macs<=50%"))
    assert search_steps._still(searched(running, 0.0, over)).holds
    assert not search_steps._still(searched(over, 0.0, over)).holds
    assert not search_steps._still(searched(running, 0.0, running)).holds


def test_a_refreshing_step_counts_as_one_at_which_couplings_follow(monkeypatch):
    training = tiny(Ising(states=4, energy="ising", refresh=7, patience=10**6))
    asked = []
    monkeypatch.setattr(training.method, "on_step", lambda number, optimizer: asked.append(number))
    training.steps(2)
    _refreshing(training)
    training.step()
    assert asked == [1, 2, 7, 3]


def test_training_learns_dense_and_while_it_is_searched():
    for config in (None, Ising(states=4, patience=10**6)):
        training = tiny(config, batch=20)
        batch = training.data[0]
        training.data = [batch]
        losses = []
        for steps in (1, 15):
            training.steps(steps)
            logits = batch.call(training.graph.runnable).detach()
            losses.append(float(torch.nn.functional.cross_entropy(logits, batch.targets)))
        assert losses[1] < losses[0]


def test_the_cut_network_is_within_the_budget():
    training = tiny(Ising(states=4), steps=4)
    before = training.macs
    assert training.begin_seconds > 0
    training.step()
    assert macs_of(training.graph) <= before / 2
    training.step()


def test_dense_training_has_no_search():
    training = tiny()
    training.steps(1)
    assert not training.searching
    with pytest.raises(ArgumentError, match="no search"):
        _ = training.method


def test_every_back_end_is_measured():
    [part] = measure(["backends"], ONCE, SMALL).parts
    names = ("loop", "fold", "vmap", "compact")
    assert [r.name for r in part.outcome.ratios] == [f"2 samples, 4 states: {n}" for n in names]
    assert {ratio.target for ratio in part.outcome.ratios} == {STATED}
    assert [check.holds for check in part.outcome.checks] == [True] * 3


def test_a_back_end_that_is_dropped_is_told(monkeypatch):
    def choice(scorings, population, call):
        return BackendChoice("loop", {}, {"vmap": "RuntimeError: no rule"})

    monkeypatch.setattr(search_backends, "choose_backend", choice)
    [part] = measure(["backends"], ONCE, SMALL).parts
    assert [r.name.split()[-1] for r in part.outcome.ratios] == ["loop", "fold", "compact"]
    [dropped] = [check for check in part.outcome.checks if not check.holds]
    assert "vmap" in dropped.name and dropped.detail == "dropped: RuntimeError: no rule"
    assert not part.outcome.met


def test_the_six_networks_are_asked_for_by_themselves():
    assert chosen([], six=False) == ("steps", "backends")
    assert chosen([], six=True) == ("steps", "backends", "six")
    assert chosen(["six"], six=False) == ("six",)
    assert chosen(["backends,steps"], six=False) == ("steps", "backends")
    report = measure(["six"], ONCE, SMALL)
    assert report.parts == () and report.met
    [row] = report.published.rows
    # The stream, which all stages share, and the channels inside the three blocks.
    assert (row.network, row.nodes) == ("squeezenet1_1", 16 + 16 + 32 + 64)
    assert "| SqueezeNet 1.1 | 3,558 | 128 |" in str(report)
    assert "| 1.33x |" in str(report)


def test_the_published_numbers():
    assert [theirs for _, theirs, _ in PUBLISHED.values()] == [
        *(17.21, 25.12, 19.63),
        *(22.56, 28.97, 1.33),
    ]
    model = flowers_network("squeezenet1_1")
    assert model.classifier[1].out_channels == CLASSES
    again = flowers_network("squeezenet1_1")
    assert torch.equal(model.classifier[1].weight, again.classifier[1].weight)


def test_an_unknown_row_is_refused():
    with pytest.raises(ArgumentError, match=r"no row 'stps'.*Did you mean 'steps'"):
        chosen(["backends,stps"], six=False)
    result = invoke("--only", "sixx")
    assert result.exit_code == 2
    assert "there is no row 'sixx'" in result.output


@pytest.mark.parametrize(
    ("option", "value"), [("--size", "32"), ("--batch", "1"), ("--rounds", "0"), ("--threads", "0")]
)
def test_sizes_that_cannot_be_measured_are_refused(option, value):
    result = invoke("--only", "backends", option, value)
    assert result.exit_code == 2
    assert "error:" in result.output


def report(holds=True, target=1.5):
    ratios = (
        Ratio("a search step", "a plain step", target, ((3.0, 1.0), (4.0, 2.0))),
        Ratio("loop", "a forward", STATED, ((0.6, 0.1),)),
    )
    part = Part("steps", "A title", Outcome(ratios, (Check("it went on", holds, "7"),)))
    row = Overhead("alexnet", 9344, Ratio("AlexNet", "a plain step", STATED, ((5.0, 2.0),)))
    return SearchReport("Idle.", (part,), Overheads((row,), "The setting."))


def test_the_page():
    page = report(target=3.0).markdown("python -m bench.search_speed --six")
    lines = page.splitlines()
    assert (
        "| a search step | a plain step | 2.500x | 2.250 to 2.750 | 3.500 s / 1.500 s "
        "| at most 3x | yes |" in lines
    )
    assert "| AlexNet | 18,662 | 9,344 | 2.00 s | 5.00 s | 2.50x | one round | 28.97x |" in lines
    for words in ("    python -m bench.search_speed --six", "Idle.", "## A title", "The setting."):
        assert words in lines
    assert "it went on: yes, 7." in page


def test_missed_targets_and_broken_checks_are_told():
    assert report(target=3.0).met
    assert not report(target=1.5).met
    broken = report(holds=False, target=3.0)
    assert not broken.met and "it went on: NO" in str(broken)


def test_the_report_is_plain_json():
    found = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert found["parts"][0]["ratios"][1]["target"] is None
    assert found["published"][0]["theirs"] == 28.97
    assert found["published"][0]["ratio"] == 2.5


def test_the_command_writes_what_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(SearchSizes, "quick", classmethod(lambda cls: SMALL))
    out = tmp_path / "below" / "speed.md"
    threads = torch.get_num_threads()
    result = invoke("--quick", "--only", "backends,six", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    found = json.loads(result.stdout)
    assert [part["name"] for part in found["parts"]] == ["backends"]
    assert len(found["published"]) == 1
    page = out.read_text()
    assert f"## {ROWS['backends'][0]}" in page and f"## {ROWS['steps'][0]}" not in page
    assert "## The six networks" in page


def test_all_sizes_can_be_quick():
    quick, full = SearchSizes.quick(), SearchSizes(batch=4, side=128)
    assert quick.task.factory == full.task.factory == "bench.zoo:resnet20"
    assert (quick.task.batch, full.task.batch) == (8, 128)
    assert (full.batch, full.side, full.networks) == (4, 128, None)
    assert full.search("ising") == Ising(states=8, energy="ising", patience=10**6)
