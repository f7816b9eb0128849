"""Tables of runs: means, tests, and what must not be compared."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest

from bench.comparison import read_results, tabulate
from bench.comparison_text import to_csv, to_latex, to_markdown, write_comparison
from bench.paired import Against
from bench.statistics import mcnemar, paired_t, sign_test
from energy_model.errors import ArgumentError, StorageError

EXPERIMENT = {"name": "toy", "model": "m:net", "weights": "", "data": "digits", "layers": None}


def result(label, budget, seed, accuracy, *, steps=100, before=0.99, recipe=EXPERIMENT):
    share = int(budget.removeprefix("energy<=").removesuffix("%"))
    return {
        "format": "transform-result",
        "version": 1,
        "recipe": dict(recipe),
        "cell": {"label": label, "budget": budget, "seed": seed},
        "steps": steps,
        "energy": {"before": 1000, "after": 10 * share},
        "nonzeros": {"before": 200, "after": share},
        "metrics": {"test": {"before": before, "after": accuracy}},
    }


SCORES = {
    ("energy", "energy<=30%"): [0.95, 0.96, 0.97],
    ("magnitude global", "energy<=30%"): [0.93, 0.95, 0.94],
    ("energy", "energy<=100%"): [0.98, 0.98, 0.98],
    ("magnitude global", "energy<=100%"): [0.98, 0.98, 0.98],
}
RESULTS = [
    result(label, budget, seed, accuracy)
    for (label, budget), scores in SCORES.items()
    for seed, accuracy in enumerate(scores)
]


@pytest.fixture
def table():
    return tabulate(RESULTS, command="transform compare runs --out here")


def test_means_deviations_and_tests(table):
    assert table.baseline == "magnitude global"
    assert table.labels == ("energy", "magnitude global")
    assert table.budgets == ("energy<=100%", "energy<=30%")
    assert table.base == 0.99
    for (label, budget), scores in SCORES.items():
        entry = table.at(label, budget)
        assert entry.mean == pytest.approx(statistics.fmean(scores))
        assert entry.std == pytest.approx(statistics.stdev(scores))
        assert entry.seeds == (0, 1, 2)
    entry = table.at("energy", "energy<=30%")
    expected = paired_t(*(SCORES[k, "energy<=30%"] for k in ("energy", "magnitude global")))
    found = entry.against
    assert (found.difference, found.p, found.pairs) == (expected.difference, expected.p, 3)
    assert found.sign == sign_test(*(SCORES[k, "energy<=30%"] for k in table.labels))
    assert (entry.energy, entry.nonzeros) == (0.3, 0.15)
    assert table.at("magnitude global", "energy<=30%").against == Against()
    assert table.at("energy", "energy<=100%").against.p == 1


def test_pairs_are_matched_by_seed_whatever_the_order(table):
    assert tabulate(RESULTS[::-1], command=table.command) == table


def test_only_common_seeds_are_paired():
    some = [r for r in RESULTS if r["cell"]["label"] == "energy" or r["cell"]["seed"] < 2]
    entry = tabulate(some).at("energy", "energy<=30%")
    assert (len(entry.seeds), entry.against.pairs) == (3, 2)
    assert entry.against.difference == pytest.approx(0.015)


def test_one_seed_has_neither_deviation_nor_test():
    table = tabulate([r for r in RESULTS if r["cell"]["seed"] == 0])
    assert {(e.std, e.against.p) for e in table.entries} == {(None, None)}
    assert "| energy | 98.00 | 95.00 |" in to_markdown(table)
    assert "| energy<=30% | energy | +2.00 | - | - | - | - | 1 |" in to_markdown(table)
    assert "noise" not in to_markdown(table)


def test_without_a_common_seed_nothing_is_compared():
    seeds = {"energy": 0, "magnitude global": 1}
    table = tabulate([r for r in RESULTS if r["cell"]["seed"] == seeds[r["cell"]["label"]]])
    assert {entry.against for entry in table.entries} == {Against()}
    assert "Nothing is compared with magnitude global" in to_markdown(table)
    assert to_latex(table).count("tabular") == 2


def test_the_baseline_is_chosen(table):
    other = tabulate(RESULTS, "energy")
    assert other.labels[-1] == "energy"
    entry = other.at("magnitude global", "energy<=30%")
    expected = table.at("energy", "energy<=30%").against.difference
    assert entry.against.difference == -expected
    with pytest.raises(ArgumentError, match="no run is labelled 'none'"):
        tabulate(RESULTS, "none")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (result("energy", "energy<=30%", 0, 0.9), "two results are of one cell"),
        (result("energy", "energy<=30%", 3, 0.9, steps=99), "99 training steps against 100"),
        (
            result("energy", "energy<=30%", 3, 0.9, recipe=EXPERIMENT | {"data": "mnist"}),
            "the runs differ in data",
        ),
        (result("energy", "energy<=30%", 3, None), "no test accuracy"),
    ],
)
def test_what_is_not_comparable_is_refused(extra, message):
    with pytest.raises(ArgumentError, match=message):
        tabulate([*RESULTS, extra])
    with pytest.raises(ArgumentError, match="no results"):
        tabulate([])


def test_the_texts_hold_every_entry_and_the_command(table):
    markdown = to_markdown(table)
    assert "| method | energy<=100% | energy<=30% |" in markdown
    assert "| energy | 98.00 ± 0.00 | 96.00 ± 1.00 |" in markdown
    assert "| energy<=30% | energy | +2.00 ± 1.00 | 0.0742 | 0.2500 |" in markdown
    assert "Made with `transform compare runs --out here`." in markdown
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [float(row["mean"]) for row in rows] == [entry.mean for entry in table.entries]
    assert rows[-1]["p"] == ""
    assert [row["seeds"] for row in rows] == ["0 1 2"] * 4
    latex = to_latex(table)
    assert r"energy$\le$30\% \\" in latex
    assert r"energy & 98.00 $\pm$ 0.00 & 96.00 $\pm$ 1.00 \\" in latex
    assert latex.startswith("% transform compare")
    assert r"energy$\le$30\% & energy & +2.00 $\pm$ 1.00 & 0.0742 & 0.2500" in latex


def test_a_hole_is_shown_as_a_hole():
    hole = ("energy", "energy<=30%")
    some = [r for r in RESULTS if (r["cell"]["label"], r["cell"]["budget"]) != hole]
    assert "| energy | 98.00 ± 0.00 | - |" in to_markdown(tabulate(some))


def test_all_files_are_written(table, tmp_path):
    written = write_comparison(table, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "comparison.tex",
    ]
    assert {path.parent for path in written} == {tmp_path / "out"}
    saved = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    assert saved["command"] == table.command
    assert [entry["difference"] for entry in saved["entries"]] == [
        entry.against.difference for entry in table.entries
    ]
    assert write_comparison(table, tmp_path / "out") == written


def judged(result, right, order="a"):
    bits = "".join("1" if each else "0" for each in right)
    text = f"{int(bits.ljust(-len(bits) // 8 * -8, '0'), 2):0{-len(bits) // 8 * -2}x}"
    test = {"before": 0.99, "after": sum(right) / len(right)}
    correct = {"samples": len(right), "order": order, "before": text, "after": text}
    return result | {"metrics": {"test": test}, "test_correct": correct}


def judged_results(order="a"):
    """Two seeds of 1000 samples: 30 and 12 won, 10 and 10 lost."""
    for seed, won in enumerate((30, 12)):
        own = [True] * 500 + [True] * won + [False] * (500 - won)
        other = [True] * 490 + [False] * 10 + [False] * 500
        own = [a and not 0 <= n < 10 for n, a in enumerate(own)]
        other = [b or 490 <= n < 500 for n, b in enumerate(other)]
        yield judged(result("energy", "energy<=30%", seed, 0), own)
        yield judged(result("magnitude", "energy<=30%", seed, 0), other, order)


def test_test_samples_are_paired_within_a_seed():
    table = tabulate(judged_results())
    found = table.at("energy", "energy<=30%").against
    assert (found.won, found.lost, found.judged) == (42, 20, 2)
    # Of two seeds the upper: never the more flattering one, and never of 42 against 20.
    assert found.mcnemar == max(mcnemar(30, 10), mcnemar(12, 10))
    assert table.samples == 1000
    assert found.difference == pytest.approx((20 + 2) / 2 / 1000)


def test_the_notes_say_what_a_sample_is_worth_and_what_is_noise():
    markdown, latex = (write(tabulate(judged_results())) for write in (to_markdown, to_latex))
    for text in (markdown, latex):
        assert "One of the 1,000 test samples is worth 0.1 points." in text
        assert "A difference smaller than its spread" in text
        assert "The sign test of 2 seeds cannot go below 0.5000." in text
        assert "p is the median over seeds. All seeds share the test samples" in text
        assert "McNemar leaves out" not in text
    assert "| 42 : 20 | 2 |" in markdown
    assert "& 42 : 20 & 2 &" in latex


def test_runs_that_cannot_be_paired_by_sample_are_left_out_and_said_so():
    for results in (judged_results(order="b"), RESULTS):
        table = tabulate(results)
        found = table.at("energy", "energy<=30%").against
        assert (found.mcnemar, found.won, found.lost, found.judged) == (None, None, None, 0)
        assert found.p is not None
        assert "McNemar leaves out runs" in to_markdown(table)
    assert "is worth" not in to_markdown(table)


def test_damaged_samples_are_refused():
    results = list(judged_results())
    results[0]["test_correct"]["after"] = "ff"
    with pytest.raises(ArgumentError, match="energy, energy<=30%, seed 0: which test samples"):
        tabulate(results)


def test_results_are_found_below_folders(tmp_path):
    for number, values in enumerate(RESULTS[:2]):
        folder = tmp_path / "runs" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(values))
    expected = {tmp_path / "runs" / f"{number}": RESULTS[number] for number in range(2)}
    assert read_results([tmp_path, tmp_path / "runs"]) == expected
    with pytest.raises(StorageError, match=r"no result\.json"):
        read_results([tmp_path / "elsewhere"])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StorageError, match="no result of a run"):
        read_results([tmp_path])
