"""Ratios, verdicts and the report, on numbers made by hand."""

from __future__ import annotations

import pytest

from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.report import Conditions, SpeedReport
from bench.speed.rounds import Settings, clocked, interleave, over_first
from energy_model.errors import ArgumentError

CONDITIONS = Conditions("a CPU, 2 cores", "2.13.0", 2, 5, 15, (0.1, 0.2))


def ratio(*pairs, target=0.5):
    return Ratio("mine", "theirs", target, pairs)


def test_median_and_quartiles_are_of_the_paired_ratios():
    found = ratio((1, 10), (9, 30), (2, 10), (16, 40), (10, 20))  # 0.1 0.3 0.2 0.4 0.5
    assert found.quartiles == pytest.approx((0.2, 0.3, 0.4))
    assert found.median == pytest.approx(0.3)  # not the ratio of the medians, 9 / 20
    assert found.medians == (9, 20)
    assert found.least == pytest.approx(0.1)


def test_least_takes_both_minima_wherever_they_are():
    assert ratio((4, 10), (2, 20)).least == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("pairs", "met", "verdict"),
    [
        ([(4, 10)] * 3, True, "yes"),
        ([(5, 10)] * 3, True, "yes"),  # at most includes the target
        ([(6, 10)] * 3, False, "no"),
        ([(1, 10), (2, 10), (3, 10), (4, 10)], True, "yes"),  # far apart, all on one side
        ([(6, 10), (9, 10), (20, 10), (40, 10)], False, "no"),
        ([(1, 10), (2, 10), (8, 10), (9, 10)], True, "noisy"),
        (
            [(1, 10), (6, 10), (8, 10), (9, 10), (9, 10)],
            False,
            "no",
        ),  # one stray round does not excuse
        ([(1, 10), (4, 10), (8, 10), (20, 10)], False, "noisy"),
        ([(49, 100), (50, 100), (52, 100), (54, 100)], False, "no"),  # straddles, but steady
    ],
)
def test_verdict(pairs, met, verdict):
    found = ratio(*pairs)
    assert (found.met, found.verdict) == (met, verdict)


def test_an_outcome_is_met_when_all_its_parts_are():
    good, bad = Outcome((ratio((4, 10)),)), Outcome((ratio((6, 10)),))
    holds, fails = (Outcome((), (Check("same", ok, ""),)) for ok in (True, False))
    assert (good + holds).met
    assert not (good + bad).met
    assert not (good + fails).met
    assert (good + bad + fails).ratios == good.ratios + bad.ratios


def test_rounds_reverse_their_order_and_keep_their_columns():
    seen = []

    def turn(name, seconds):
        return lambda: seen.append(name) or seconds

    found = interleave([turn("a", 2.0), turn("b", 1.0), turn("c", 8.0)], 3)
    assert "".join(seen) == "abccbaabc"
    assert found == ((2.0, 1.0, 8.0),) * 3
    assert over_first(found, 2) == ((8.0, 2.0),) * 3


@pytest.mark.slow
def test_a_clocked_action_runs_once_and_takes_time():
    calls = []
    turn = clocked(lambda: calls.append(1))
    assert calls == []
    assert turn() > 0
    assert calls == [1]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}])
def test_settings_are_validated(wrong):
    with pytest.raises(ArgumentError, match="too few"):
        Settings(**wrong)


def test_page_has_command_targets_and_verdicts():
    outcome = Outcome(
        (ratio((0.4, 2), (0.3, 1)), Ratio("extra", "bytes", 1.5, ((3e6, 1e6),), "bytes")),
        (Check("same kept set", False, "3 differ"),),
    )
    report = SpeedReport(outcome, CONDITIONS)
    page = report.markdown("python -m bench.speed")
    lines = page.splitlines()
    assert lines[:3] == ["# Speed", "", "    python -m bench.speed"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    head, _, times, memory = rows[:4]
    assert dict(zip(head, times, strict=True)) == {
        "what": "mine",
        "against": "theirs",
        "ratio": "0.250x",
        "quartiles": "0.225 to 0.275",
        "least": "0.300x",
        "medians": "350.0 ms / 1.500 s",
        "target": "at most 0.5x",
        "met": "yes",
    }
    assert memory[2:] == ["3.000x", "one round", "3.000x", "3.0 MB / 1.0 MB", "at most 1.5x", "no"]
    assert rows[-1] == ["same kept set", "3 differ", "no"]
    assert str(CONDITIONS) in page
    data = report.to_dict()
    assert data["met"] is False
    assert data["ratios"][0]["ratio"] == pytest.approx(0.25)
    assert data["ratios"][0]["pairs"] == [[0.4, 2], [0.3, 1]]
    assert data["checks"] == [{"name": "same kept set", "holds": False, "detail": "3 differ"}]
