"""Tables of runs: means, tests, and what must not be compared."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest

from bench.comparison import read_results, tabulate
from bench.comparison_text import plot_comparison, to_csv, to_latex, to_markdown, write_comparison
from bench.statistics import paired_t
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
    assert (entry.difference, entry.p, entry.pairs) == (expected.difference, expected.p, 3)
    assert (entry.energy, entry.nonzeros) == (0.3, 0.15)
    assert table.at("magnitude global", "energy<=30%").p is None
    assert table.at("energy", "energy<=100%").p == 1


def test_pairs_are_matched_by_seed_whatever_the_order(table):
    assert tabulate(RESULTS[::-1], command=table.command) == table


def test_only_common_seeds_are_paired():
    some = [r for r in RESULTS if r["cell"]["label"] == "energy" or r["cell"]["seed"] < 2]
    entry = tabulate(some).at("energy", "energy<=30%")
    assert (len(entry.seeds), entry.pairs) == (3, 2)
    assert entry.difference == pytest.approx(0.015)


def test_one_seed_has_neither_deviation_nor_test():
    table = tabulate([r for r in RESULTS if r["cell"]["seed"] == 0])
    assert {(e.std, e.p) for e in table.entries} == {(None, None)}
    assert "| energy | 98.00 | 95.00 |" in to_markdown(table)
    assert "Nothing is tested" in to_markdown(table)


def test_the_baseline_is_chosen(table):
    other = tabulate(RESULTS, "energy")
    assert other.labels[-1] == "energy"
    entry = other.at("magnitude global", "energy<=30%")
    assert entry.difference == -table.at("energy", "energy<=30%").difference
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
    assert "| energy<=30% | energy | +2.00 |" in markdown
    assert "Made with `transform compare runs --out here`." in markdown
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [float(row["mean"]) for row in rows] == [entry.mean for entry in table.entries]
    assert rows[-1]["p"] == ""
    latex = to_latex(table)
    assert r"energy$\le$30\% \\" in latex
    assert r"energy & 98.00 $\pm$ 0.00 & 96.00 $\pm$ 1.00 \\" in latex
    assert latex.startswith("% transform compare")


def test_a_hole_is_shown_as_a_hole():
    hole = ("energy", "energy<=30%")
    some = [r for r in RESULTS if (r["cell"]["label"], r["cell"]["budget"]) != hole]
    assert "| energy | 98.00 ± 0.00 | - |" in to_markdown(tabulate(some))


def test_all_files_are_written(table, tmp_path):
    written = write_comparison(table, tmp_path / "out")
    assert [path.suffix for path in written] == [".csv", ".json", ".md", ".png", ".tex"]
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    assert saved["command"] == table.command
    assert len(saved["entries"]) == len(table.entries)
    assert write_comparison(table, tmp_path / "out") == written


def test_the_plot_names_methods_and_axes(table, tmp_path):
    text = plot_comparison(table, tmp_path / "a.svg").read_text()
    for word in ("magnitude global", "test accuracy, %", "original 99.00%", "toy: m:net on digits"):
        assert f"<!-- {word} -->" in text
    with pytest.raises(ArgumentError, match="no format of a plot"):
        plot_comparison(table, tmp_path / "a.doc")


def test_results_are_found_below_folders(tmp_path):
    for number, values in enumerate(RESULTS[:2]):
        folder = tmp_path / "runs" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(values))
    assert read_results([tmp_path, tmp_path / "runs"]) == RESULTS[:2]
    with pytest.raises(StorageError, match=r"no result\.json"):
        read_results([tmp_path / "elsewhere"])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StorageError, match="no result of a run"):
        read_results([tmp_path])
