"""Training curves: lines are read back from the axes."""

from __future__ import annotations

import matplotlib
import pytest

from bench import training_plots
from bench.plots import save_figure
from bench.training_plots import plot_training
from energy_model.errors import ArgumentError

FIRST = [[1, 0.9, None, 0.1], [2, 0.5, 0.8, 0.05], [3, 0.4, 0.9, 0.01]]
SECOND = [[1, 0.7, None, 0.1], [2, 0.6, None, 0.1]]
COLORS = {"a": "#ff0000", "b": "#0000ff"}


@pytest.fixture
def figures(monkeypatch):
    """Figures as they were before they were written."""
    kept = []
    monkeypatch.setattr(
        training_plots, "save_figure", lambda f, path: (kept.append(f), save_figure(f, path))[1]
    )
    return kept


def lines(axes):
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    return {(line.get_color(), *line.get_xdata(), *line.get_ydata()) for line in drawn}


def test_loss_and_metric_of_every_run_are_drawn(figures, tmp_path):
    groups = {"wide": {"a": [FIRST], "b": [SECOND, SECOND]}, "tight": {"a": [], "b": [FIRST]}}
    path = plot_training(groups, tmp_path / "a.png", COLORS, "title")
    assert path.read_bytes()[:4] == b"\x89PNG"
    wide_loss, tight_loss, wide_metric, tight_metric = figures[0].axes
    first, second = (1, 2, 3, 0.9, 0.5, 0.4), (1, 2, 0.7, 0.6)
    assert lines(wide_loss) == {("#ff0000", *first), ("#0000ff", *second)}
    assert lines(tight_loss) == {("#0000ff", *first)}
    assert lines(wide_metric) == {("#ff0000", 2, 3, 0.8, 0.9)}
    assert lines(tight_metric) == {("#0000ff", 2, 3, 0.8, 0.9)}
    assert [axes.get_title("left") for axes in figures[0].axes[:2]] == ["wide", "tight"]
    [legend] = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_without_a_metric_there_is_only_the_loss(figures, tmp_path):
    plot_training({"one": {"a": [SECOND]}}, tmp_path / "a.png", {"a": "#ff0000"})
    [axes] = figures[0].axes
    assert axes.get_ylabel().startswith("training loss")
    assert figures[0].legends == []


def test_phases_that_begin_again_are_counted_on(figures, tmp_path):
    plot_training({"one": {"a": [SECOND + SECOND]}}, tmp_path / "a.png", {"a": "#ff0000"})
    [(_, *values)] = lines(figures[0].axes[0])
    assert values[:4] == [1, 2, 3, 4]


def test_what_was_not_trained_and_bad_formats_are_refused(tmp_path):
    for groups in ({}, {"one": {"a": []}}, {"one": {"a": [[]]}}):
        with pytest.raises(ArgumentError, match="nothing was trained"):
            plot_training(groups, tmp_path / "a.png", COLORS)
    with pytest.raises(ArgumentError, match="no format of a plot"):
        plot_training({"one": {"a": [FIRST]}}, tmp_path / "a.gif", COLORS)
    assert list(tmp_path.iterdir()) == []


def test_no_state_is_left(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_training({"one": {"a": [FIRST]}}, tmp_path / "a.png", COLORS)
    assert dict(matplotlib.rcParams) == before
