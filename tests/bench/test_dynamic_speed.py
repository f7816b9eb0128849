"""What dynamic training costs, on networks so small that only the numbers' shape matters."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from bench import dynamic_events, dynamic_memory, dynamic_steps
from bench.dynamic_memory import ideal_bytes, peak_bytes, tensor_bytes, train_twice
from bench.dynamic_report import DynamicReport, Part
from bench.dynamic_sizes import LENET300, PERIOD, RESNET50, STATED, WRN16, Sizes
from bench.dynamic_speed import ROWS, chosen, main, measure
from bench.dynamic_training import Training
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings
from energy_model.errors import ArgumentError
from passes.dynamic.policies import AtRandom, SmallestOfAll
from passes.dynamic.registry import find_rule
from passes.dynamic.rule import RULES, Rule
from passes.dynamic.schedule import Schedule

TINY = replace(WRN16, batch=2, input_shape=(3, 8, 8))
SMALL = Sizes(TINY, TINY, replace(LENET300, batch=4), 1, 2, 3)
ONCE = Settings(rounds=1, threads=1)
# The targets of each row; deepr has two networks at two densities.
TARGETS = {
    "rewiring": [1.02, STATED, STATED],
    "selection": [0.15, STATED, STATED],
    "deepr": [1.5] * 4,
    "masked": [1.1],
    "rules": [STATED] * len(RULES),
    "memory": [STATED] * 11,
}


@pytest.fixture(autouse=True)
def unswept(monkeypatch):
    """Garbage is collected before whatever is timed: here it would take most of the time."""
    monkeypatch.setattr("bench.speed.rounds.gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    """Processes of their own take seconds; one test is about them."""
    asked = []

    def answer(*arguments):
        asked.append(arguments)
        return json.dumps({"extra": 1000 + len(asked)})

    monkeypatch.setattr(dynamic_memory, "run_python", answer)
    return asked


def invoke(*arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", ROWS)
def test_every_row_gives_positive_ratios(name):
    [part] = measure([name], ONCE, SMALL).parts
    assert part.name == name
    assert [ratio.target for ratio in part.outcome.ratios] == TARGETS[name]
    for ratio in part.outcome.ratios:
        assert len(ratio.pairs) == 1
        assert all(number > 0 for pair in ratio.pairs for number in pair)
        assert math.isfinite(ratio.median)
    assert all(check.holds for check in part.outcome.checks)


def test_a_step_bears_its_share_of_the_event():
    [part] = measure(["rewiring"], Settings(rounds=2, threads=1), SMALL).parts
    whole, gathering, event = part.outcome.ratios
    for round_ in range(2):
        plain = whole.pairs[round_][1]
        extra = gathering.pairs[round_][0] - plain + event.pairs[round_][0]
        assert whole.pairs[round_][0] == pytest.approx(plain + extra / PERIOD)
        assert gathering.pairs[round_][1] == event.pairs[round_][1] == plain


def test_events_that_did_not_happen_are_seen():
    training = Training(TINY, TINY.batches(1), find_rule("dsr_plus"))
    training.begin(PERIOD)
    training.gradient_step()
    training.rewire()
    before = sum(training.rewires.counts())
    assert dynamic_events._conserved(training, before, 1).holds
    assert not dynamic_events._conserved(training, before, 2).holds
    assert not dynamic_events._conserved(training, before + 1, 1).holds


def test_a_selection_that_is_not_exact_is_seen(monkeypatch):
    def one_less(magnitudes, masks, count):
        return [torch.zeros_like(mask) for mask in masks]

    monkeypatch.setattr(dynamic_events, "smallest_of_all", one_less)
    [part] = measure(["selection"], ONCE, SMALL).parts
    assert [check.holds for check in part.outcome.checks] == [False, True]


def test_every_known_rule_is_measured(monkeypatch):
    schedule = Schedule(every=1, share=0.1)
    mine = Rule("mine", schedule=schedule, drop=SmallestOfAll(), grow=AtRandom())
    monkeypatch.setattr(dynamic_steps, "rules", lambda: {"static": RULES["static"], "mine": mine})
    [part] = measure(["rules"], ONCE, SMALL).parts
    static, own = (ratio.name for ratio in part.outcome.ratios)
    assert static == "rule static, 2% active, 0 events an epoch"
    # 6 steps were done, and there is none after step 0.
    assert own == "rule mine, 2% active, 2.5 events an epoch"


def test_training_has_as_many_weights_as_it_says():
    training = Training(LENET300, LENET300.batches(1), find_rule("set"), 0.1)
    engine = training.rewires
    assert sum(engine.counts()) == 26_620
    training.begin(539)  # the last of an epoch, which has the event
    training.steps(2)
    assert engine.events == 1
    assert training.number == 541
    assert training.taken == 2
    for member in engine.members:
        weight, mask = training.graph.weight(member.site).reshape(-1), engine.mask(member)
        assert not weight[~mask].any()
    assert sum(engine.counts()) == 26_620


def test_training_learns_dense_or_sparse():
    for rule in (None, find_rule("static")):
        data = replace(LENET300, batch=20).batches(1)
        training = Training(LENET300, data, rule)
        [(inputs, labels)] = data
        losses = []
        for steps in (1, 15):
            training.steps(steps)
            logits = training.graph.runnable(inputs).detach()
            losses.append(float(nn.functional.cross_entropy(logits, labels)))
        assert losses[1] < losses[0] / 2


def test_dense_training_has_no_engine():
    training = Training(TINY, TINY.batches(1))
    training.steps(1)
    with pytest.raises(ArgumentError, match="no engine"):
        training.rewire()


def test_the_sparse_tensors_are_those_of_the_papers():
    def sparse(task):
        import_module("bench.zoo")
        module, _, name = task.factory.partition(":")
        with torch.device("meta"):
            model = getattr(import_module(module), name)()
        kinds = (nn.Conv2d, nn.Linear)
        named = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
        return sum(m.weight.numel() for n, m in named if not re.fullmatch(task.dense, n))

    assert sparse(RESNET50) == 22_724_608
    assert sparse(LENET300) == 266_200
    # 9 weights a kernel; twelve convolutions in three stages of 16, 32 and 64 channels
    stages = [4 * 16 * 16, 16 * 32 + 3 * 32 * 32, 32 * 64 + 3 * 64 * 64]
    assert sparse(WRN16) == 9 * sum(stages)
    members = Training(TINY, TINY.batches(1), find_rule("static")).rewires.members
    assert sum(member.shape.parameters for member in members) == 9 * sum(stages)


def test_bytes_of_a_sparse_tensor():
    assert ideal_bytes(100, 10) == 40 + 13  # a bit for every weight
    assert ideal_bytes(1000, 1) == 4 + 4  # an index for the only one
    assert ideal_bytes(64, 2) == 8 + 8
    assert ideal_bytes(64, 0) == 0


def test_shared_memory_is_counted_once():
    values = torch.zeros(10)
    assert tensor_bytes([values, values[2:], None, torch.zeros(3, dtype=torch.bool)]) == 43


def test_what_is_counted_in_memory(peaks):
    [part] = measure(["memory"], ONCE, SMALL).parts
    sizes = {ratio.name: ratio.pairs[0] for ratio in part.outcome.ratios}
    sparse = Training(TINY, TINY.batches(1), find_rule("dsr_plus"))
    weights = sum(m.shape.parameters for m in sparse.rewires.members)
    active = sum(sparse.rewires.counts())
    whole = 4 * sum(p.numel() for p in sparse.graph.module.parameters())
    assert sizes["state of the optimizer, one momentum"] == (whole, whole)
    assert sizes["masks, a byte a weight"] == (weights, whole)
    assert sizes["dense gradients gathered for an event"] == (4 * weights, whole)
    assert sizes["the engine: what was ever active, a byte a weight"] == (weights, whole)
    assert sizes["ideal: active weights of sparse tensors"] == (4 * active, 4 * weights)
    rest = whole - 4 * weights
    assert sizes["ideal: active weights and all dense parameters"] == (rest + 4 * active, whole)
    walk = sizes["the engine of rule deepr besides: its list of active weights"][0]
    assert walk >= 20 * active
    assert [arguments[3] for arguments in peaks] == ["dense", "static", "dsr_plus"]
    assert [r.pairs for r in part.outcome.ratios[-2:]] == [((1002, 1001),), ((1003, 1001),)]


@pytest.mark.parametrize("rule", ["dense", "static", "dsr_plus"])
def test_the_peak_is_that_of_two_steps(rule, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(Training, "steps", lambda self, n: taken.append((self.number, n)))
    monkeypatch.setattr(dynamic_memory, "extra_bytes", lambda action: (action(), 7)[1])
    dynamic_memory.main(json.dumps(asdict(TINY)), rule, str(torch.get_num_threads()))
    assert json.loads(capsys.readouterr().out) == {"extra": 7}
    assert taken == [(1, 1), (PERIOD, 1)]


def test_the_second_of_them_has_the_event(monkeypatch):
    rows = []
    rewire = Training.rewire
    monkeypatch.setattr(Training, "rewire", lambda self: rows.append(rewire(self)) or rows[-1])
    train_twice(TINY, "dsr_plus")
    assert [row is not None for row in rows] == [False, True]


@pytest.mark.slow
def test_a_fresh_process_tells_its_peak(monkeypatch):
    monkeypatch.undo()
    assert peak_bytes(TINY, "static", ONCE) > 4 * 171_000


def test_rows_are_chosen_in_the_order_of_the_page():
    assert chosen([]) == tuple(ROWS)
    assert chosen(["memory", "rewiring,masked"]) == ("rewiring", "masked", "memory")


def test_an_unknown_row_is_refused():
    with pytest.raises(ArgumentError, match=r"no row 'deeper'.*Did you mean 'deepr'"):
        chosen(["rules,deeper"])
    result = invoke("--only", "rule_s")
    assert result.exit_code == 2
    assert "there is no row 'rule_s'" in result.output


@pytest.mark.parametrize(
    ("option", "value"), [("--size", "32"), ("--batch", "0"), ("--rounds", "0"), ("--threads", "0")]
)
def test_sizes_that_cannot_be_measured_are_refused(option, value):
    result = invoke("--only", "masked", option, value)
    assert result.exit_code == 2
    assert "error:" in result.output


def report(*ratios, holds=True):
    check = Check("a count is kept", holds, "7 of 7")
    return DynamicReport("Idle.", (Part("deepr", "A title", Outcome(ratios, (check,))),))


def test_the_table_has_a_line_for_every_ratio():
    page = report(
        Ratio("steps", "other steps", 1.5, ((0.3, 0.2), (0.45, 0.3))),
        Ratio("masks", "weights", STATED, ((2e6, 8e6),), "bytes"),
        Ratio("slow steps", "other steps", 1.5, ((3.2, 2.0),)),
    ).markdown("python -m bench.dynamic_speed")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 8 for line in lines)
    assert lines[2:] == [
        "| steps | other steps | 1.500x | 1.500 to 1.500 | 375.0 ms / 250.0 ms "
        "| at most 1.5x | yes |",
        "| masks | weights | 0.250x | one round | 2.0 MB / 8.0 MB | stated |  |",
        "| slow steps | other steps | 1.600x | one round | 3.200 s / 2.000 s | at most 1.5x | no |",
    ]
    for words in ("    python -m bench.dynamic_speed", "Idle.", "## A title"):
        assert words in page.splitlines()
    assert "a count is kept: yes, 7 of 7." in page


def test_a_missed_target_and_a_broken_check_are_told():
    good = Ratio("steps", "others", 1.5, ((1.0, 1.0),))
    stated = Ratio("masks", "weights", STATED, ((9.0, 1.0),), "bytes")
    assert report(good, stated).met
    assert not report(replace(good, target=0.5)).met
    broken = report(good, holds=False)
    assert not broken.met
    assert "a count is kept: NO" in str(broken)


def test_the_report_is_plain_json():
    found = report(
        Ratio("steps", "others", 1.5, ((1.0, 1.0),)), Ratio("masks", "w", STATED, ((1.0, 1.0),))
    ).to_dict()
    limited, stated = json.loads(json.dumps(found, allow_nan=False))["parts"][0]["ratios"]
    assert limited["target"] == 1.5
    assert (stated["target"], stated["verdict"]) == (None, None)


def test_the_command_measures_what_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Sizes, "quick", classmethod(lambda cls: SMALL))
    out = tmp_path / "below" / "speed.md"
    threads = torch.get_num_threads()
    arguments = ("--quick", "--threads", "1", "--out", str(out), "--json")
    result = invoke("--only", "masked", "--only", "rewiring", *arguments)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    found = json.loads(result.stdout)
    assert [part["name"] for part in found["parts"]] == ["rewiring", "masked"]
    page = out.read_text()
    for name in ("rewiring", "masked"):
        assert f"## {ROWS[name][0]}" in page
    assert "## Memory" not in page


def test_all_sizes_can_be_quick():
    quick, full = Sizes.quick(), Sizes.of(4, 128)
    assert (quick.large.batch, quick.large.input_shape) == (2, (3, 64, 64))
    assert quick.large.factory == full.large.factory
    assert (full.large.batch, full.large.input_shape) == (4, (3, 128, 128))
    assert full.epoch == Sizes().epoch == 540
