"""The committed table of torchvision's families is what the code finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.structure_zoo import FAMILIES, measure_row, to_markdown
from energy_model.errors import ArgumentError

TABLE = Path(__file__).resolve().parents[2] / "bench" / "results" / "structure.md"
FAST = {"squeezenet1_1", "mobilenet_v3_small"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_row(name):
    row = measure_row(name)
    assert str(row) in TABLE.read_text().splitlines()
    assert row.error <= 1e-9
    assert 0 < row.params < 1


def test_the_table_is_whole():
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows]
    assert names == ["model", "---", *FAMILIES]
    assert to_markdown([]).splitlines()[:4] == TABLE.read_text().splitlines()[:4]


def test_unknown_models():
    with pytest.raises(ArgumentError, match="unknown model 'lenet'"):
        measure_row("lenet")
