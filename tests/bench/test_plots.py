"""Plots: what is drawn is read back from the file as SVG text, and bad targets are refused."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import pytest
from test_measurement import STEADY, made, report

from bench.measurement import Report
from bench.plots import plot_energy, plot_latency, plot_sparsity
from energy_model import Cost, CostTable, Energy, load_hardware
from energy_model.errors import ArgumentError, StorageError


@pytest.fixture(autouse=True)
def text_in_svg():
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def table(share):
    rows = []
    for number, (name, weights) in enumerate([("features.0", 1500), ("classifier.4", 84_000)]):
        nonzeros = int(share * weights)
        energy = Energy(
            weights=207 * nonzeros,
            compute=3 * nonzeros,
            compute_relaxed=3 * nonzeros,
            activations=40_000 * (number + 1),
        )
        dense = 210 * weights + energy.activations
        rows.append(
            Cost(
                name=name,
                macs=weights,
                weights=weights,
                nonzeros=nonzeros,
                bits=32,
                energy=energy,
                floor=energy.activations,
                dense=dense,
            )
        )
    return CostTable(tuple(rows), load_hardware("eyeriss"))


def test_latency_shows_models_units_and_conditions(tmp_path):
    found = report(STEADY, [ms / 3 for ms in STEADY])
    path = plot_latency(found, tmp_path / "latency.svg")
    text = path.read_text()
    for shown in ("first.onnx", "second.onnx", "10 ms, 1.23 MB", "1 thread, batch 1", ", ms ("):
        assert shown in text
    assert "not conclusive" not in text
    assert "not conclusive" in plot_latency(report(STEADY, STEADY), path).read_text()


def test_energy_shows_layers_shares_and_that_it_is_a_model(tmp_path):
    before, after = table(1.0), table(0.25)
    text = plot_energy(before, after, tmp_path / "energy.svg").read_text()
    share = after.rows[1].energy.relaxed / before.rows[1].energy.relaxed
    total = after.total.energy.relaxed / before.total.energy.relaxed
    for shown in ("features.0", "classifier.4", f"{share:.0%}", f"{total:.1%}", "not measured"):
        assert shown in text
    assert "million MAC energies" in text


def test_sparsity_shows_counts(tmp_path):
    text = plot_sparsity(table(0.25), tmp_path / "sparsity.svg").read_text()
    assert "375 of 1,500" in text
    assert "25.0% of the weights are nonzero" in text


def test_a_png_is_written(tmp_path):
    path = plot_latency(Report((made("a", STEADY),)), str(tmp_path / "a.png"))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_bad_targets_are_refused(tmp_path):
    found = Report((made("a", STEADY),))
    with pytest.raises(ArgumentError, match=r"\.gif is no format"):
        plot_latency(found, tmp_path / "a.gif")
    with pytest.raises(ArgumentError, match="a name without suffix"):
        plot_latency(found, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot_latency(found, tmp_path / "file" / "a.png")


def test_an_empty_table_is_refused(tmp_path):
    empty = CostTable((), load_hardware("eyeriss"))
    for plot in (plot_sparsity, lambda t, path: plot_energy(t, t, path)):
        with pytest.raises(ArgumentError, match="nothing to plot"):
            plot(empty, tmp_path / "a.png")


def test_plotting_needs_no_global_state(tmp_path):
    code = "import sys, bench.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
