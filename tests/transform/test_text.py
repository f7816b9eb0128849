"""Plain tables."""

from __future__ import annotations

from transform.text import table


def test_columns_are_aligned_and_figures_stand_right():
    rows = [["a", "5 %"], ["longer", "100 %"]]
    lines = table(["layer", "share"], rows).strip().splitlines()
    assert len({line.rindex("%") for line in lines if "%" in line}) == 1
    assert lines[0].startswith("layer")
    assert all(line == line.rstrip() for line in lines)


def test_square_brackets_are_text_not_markup():
    assert "in_proj[0:8]" in table(["layer"], [["in_proj[0:8]"]])
    assert "[bold]" in table(["layer"], [["[bold]"]])


def test_long_cells_are_folded_within_the_width():
    text = table(["layer", "note"], [["a", "word " * 60]], width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("word") == 60
