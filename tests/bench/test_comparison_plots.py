"""Plots of comparisons: what is drawn is read back, and what cannot be drawn is not left behind."""

from __future__ import annotations

import json

import matplotlib
import pytest
from test_comparison import EXPERIMENT, result
from test_plots import table as costs

from bench.comparison import read_results, tabulate
from bench.comparison_plots import (
    _lines,
    colors,
    layer_costs,
    plot_comparison,
    plot_layers,
    plot_weights,
    training_curves,
    write_plots,
)
from bench.plots import new_figure
from energy_model.errors import ArgumentError, StorageError

CURVE = [[1, 0.9, None, 0.1], [2, 0.5, 0.8, 0.05]]
METHODS = ("energy", "magnitude global")
NAMES = ["comparison.png", "comparison-weights.png"]


def cells():
    for label in METHODS:
        for budget in ("energy<=60%", "energy<=30%"):
            for seed in (0, 1):
                accuracy = 0.9 + 0.01 * seed + 0.02 * (label == "energy")
                yield result(label, budget, seed, accuracy)


@pytest.fixture(autouse=True)
def text_in_svg():
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


@pytest.fixture
def runs(tmp_path):
    """Cells with curves; those at 30 % of seed 1, and of the energy method, hold their model."""
    for number, values in enumerate(cells()):
        folder = tmp_path / "runs" / f"{number}"
        saved = folder / "compressed"
        saved.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(values | {"curve": CURVE}))
        cell = values["cell"]
        if cell["budget"] == "energy<=30%" and (cell["seed"] or cell["label"] == "energy"):
            share = 0.3 - 0.1 * cell["seed"]
            description = {
                "format": "transform-compressed",
                "version": 1,
                "costs": {"before": costs(1.0).to_dict(), "after": costs(share).to_dict()},
            }
            (saved / "compressed.json").write_text(json.dumps(description))
    return tmp_path / "runs"


def test_accuracy_names_methods_axes_and_the_original(tmp_path):
    table = tabulate(cells())
    text = plot_comparison(table, tmp_path / "a.svg").read_text()
    words = (*METHODS, "test accuracy, %", "original 99.00%", "toy: m:net on digits")
    for word in words:
        assert f">{word}<" in text
    assert "mean ± deviation over seeds" in text
    with pytest.raises(ArgumentError, match="no format of a plot"):
        plot_comparison(table, tmp_path / "a.doc")


def test_weights_kept_name_methods_and_axes(tmp_path):
    text = plot_weights(tabulate(cells()), tmp_path / "a.svg").read_text()
    for word in (*METHODS, "weights kept, % of the original"):
        assert f">{word}<" in text
    assert "modelled energy, % of the original" in text


def test_lines_hold_every_point_with_its_deviation_and_all_are_in_sight():
    table = tabulate(cells())
    _, axes = new_figure(5, 4)
    _lines(axes, table, lambda entry: entry.mean, lambda entry: entry.std)
    [left, right], [low, high] = axes.get_xlim(), axes.get_ylim()
    for label, container in zip(table.labels, axes.containers, strict=True):
        line, _, [bars] = container.lines
        own = {entry.energy: entry for entry in table.entries if entry.label == label}
        drawn = list(zip(line.get_xdata(), line.get_ydata(), bars.get_segments(), strict=True))
        for (x, y, bar), energy in zip(drawn, sorted(own), strict=True):
            assert x == pytest.approx(100 * energy, abs=0.3)
            assert y == pytest.approx(100 * own[energy].mean)
            assert bar[1][1] - bar[0][1] == pytest.approx(200 * own[energy].std)
            assert left < x < right
            assert low < bar[0][1] < bar[1][1] < high


def test_points_without_bars_stand_where_they_are():
    table = tabulate(cells())
    _, axes = new_figure(5, 4)
    _lines(axes, table, lambda entry: entry.nonzeros)
    for container in axes.containers:
        assert list(container.lines[0].get_xdata()) == [30, 60]


def test_the_baseline_is_grey_and_no_two_methods_are_alike():
    found = colors(tabulate(cells()))
    assert list(found) == list(METHODS)
    assert found["magnitude global"] == "#777777"
    assert len(set(found.values())) == 2


def test_layers_are_those_of_the_lowest_seed_at_the_tightest_budget(runs, tmp_path):
    results = read_results([runs])
    table = tabulate(results.values())
    found = layer_costs(table, results)
    assert {label: after for label, (_, after) in found.items()} == {
        "energy": costs(0.3),
        "magnitude global": costs(0.3 - 0.1),  # seed 0 saved no model
    }
    text = plot_layers(table, found, tmp_path / "a.svg").read_text()
    share = found["energy"][1].total.energy.relaxed / found["energy"][0].total.energy.relaxed
    for word in (*METHODS, f"{share:.1%} remains", "features.0", "million MAC energies"):
        assert word in text
    assert "energy&lt;=30%: modelled energy" in text
    with pytest.raises(ArgumentError, match="nothing to plot"):
        plot_layers(table, {}, tmp_path / "b.svg")


def test_curves_are_sorted_by_budget_and_method(runs):
    results = read_results([runs])
    found = training_curves(tabulate(results.values()), results)
    expected = {label: [CURVE, CURVE] for label in METHODS}
    assert found == {"energy<=60%": expected, "energy<=30%": expected}


@pytest.mark.slow
def test_all_plots_are_written(runs, tmp_path):
    results = read_results([runs])
    written = write_plots(tabulate(results.values()), results, tmp_path / "out")
    names = [*NAMES, "comparison-energy.png", "comparison-training.png"]
    assert [path.name for path in written] == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    assert {path.read_bytes()[:4] for path in written} == {b"\x89PNG"}


def test_what_cannot_be_plotted_leaves_no_old_plot_beside_the_table(tmp_path):
    for name in ("comparison-energy.png", "comparison-training.png"):
        (tmp_path / name).write_text("old")
    results = {tmp_path / f"{n}": values for n, values in enumerate(cells())}
    written = write_plots(tabulate(results.values()), results, tmp_path)
    assert [path.name for path in written] == NAMES
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)


def test_damage_is_told(runs, tmp_path):
    results = read_results([runs])
    table = tabulate(results.values())
    for path in runs.rglob("compressed.json"):
        path.write_text("{}")
    with pytest.raises(StorageError, match="this is no finished run"):
        layer_costs(table, results)
    first = next(iter(results))
    results[first]["curve"] = [[1, "low"]]
    with pytest.raises(ArgumentError, match="the curve is no rows of epoch"):
        training_curves(table, results)


def test_the_experiment_is_named():
    assert tabulate(cells()).experiment == EXPERIMENT
