"""The plot of a sensitivity: what is drawn is read back from the file as SVG text."""

from __future__ import annotations

import re

import matplotlib
import pytest

from bench.sensitivity_plot import plot_sensitivity
from energy_model import load_hardware
from energy_model.errors import ArgumentError, StorageError
from transform.sensitivity_table import Sensitivity, SensitivityRow


@pytest.fixture(autouse=True)
def text_in_svg():
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def found(changes, shares=(0.5,)):
    rows = [
        SensitivityRow(name, share, 10, 5, 1.0, 1.0 + change * share, None, None, 20, 1000, 50)
        for name, change in changes.items()
        for share in shares
    ]
    return Sensitivity(tuple(rows), load_hardware("eyeriss"), "cross entropy", None, 1234)


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


@pytest.mark.slow
def test_layers_ranks_and_units(tmp_path):
    shown = texts(plot_sensitivity(found({"b": 3.0, "a": -1.0, "c": 1e-6}), tmp_path / "a.svg"))
    assert [text for text in shown if text in ("a", "b", "c")] == ["a", "c", "b"]
    # One rank a layer in each of three panels, and none for an axis: its labels are powers.
    assert [shown.count(rank) for rank in ("1", "2", "3")] == [3, 3, 3]
    for unit in ("per byte", "per MAC energy (relaxed)", "per MAC"):
        assert f"change of the loss {unit}" in shown
    [title] = [text for text in shown if "Each layer alone" in text]
    for part in ("50 % of its weights", "cross entropy", "1,234 samples", "eyeriss (model)"):
        assert part in title


def test_several_sparsities_have_a_legend(tmp_path):
    shown = texts(plot_sensitivity(found({"a": 1.0, "b": 2.0}, (0.9, 0.5)), tmp_path / "a.svg"))
    legend = [text for text in shown if "of the weights zeroed" in text]
    assert legend == ["0.5 of the weights zeroed", "0.9 of the weights zeroed"]
    assert "1" not in shown


def test_what_changes_or_saves_nothing_is_drawn_too(tmp_path):
    still = found({"a": 0.0, "b": 0.0})
    assert plot_sensitivity(still, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    idle = SensitivityRow("idle", 0.5, 1, 0, 1.0, 1.0, None, None, 0, 0, 0)
    mixed = Sensitivity((idle, *found({"a": 2.0}).rows), still.hardware, "loss", None, 1)
    shown = texts(plot_sensitivity(mixed, tmp_path / "b.svg"))
    assert "idle" in shown
    assert shown.count("1") == 3
    assert shown.count("2") == 0


def test_bad_targets_and_empty_tables_are_refused(tmp_path):
    table = found({"a": 1.0})
    with pytest.raises(ArgumentError, match=r"\.gif is no format"):
        table.plot(tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        table.plot(tmp_path / "file" / "a.png")
    with pytest.raises(ArgumentError, match="nothing to plot"):
        found({}).plot(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
