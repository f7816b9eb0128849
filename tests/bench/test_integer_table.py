"""The page of integer inference: sections replace each other, and columns appear when filled."""

from __future__ import annotations

import json

import pytest

import bench.integer.__main__ as command
from bench.integer.ours import Setup
from bench.integer.table import COLUMNS, Row, Section, merge, page
from energy_model.errors import StorageError

ROWS = (
    Row("fp32", accuracy=0.9, median_ms=2.0, ratio=1.0, low=1.0, high=1.0, bytes=1000),
    Row("int8 | U8S8", median_ms=1.0, ratio=0.5, low=0.45, high=0.55, note="fast"),
)


def section(name="b", rows=ROWS):
    return Section(name, f"Title {name}", rows, "Words.", command="python -m x")


def test_columns_are_those_that_a_row_fills():
    lines = section().to_markdown().splitlines()
    assert lines[:6] == [
        "## Title b",
        "",
        "|  | torch, % | latency, ms | of the first (quartiles) | bytes | note |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        "| fp32 | 90.00 | 2.000 | 1.000 (1.000 to 1.000) | 1,000 | - |",
        "| int8 \\| U8S8 | - | 1.000 | 0.500 (0.450 to 0.550) | - | fast |",
    ]
    assert lines[-1] == "Made with `python -m x`."
    assert "CPU s" not in lines[2]
    assert "| CPU s |" in section(rows=(Row("a", seconds=0.0),)).to_markdown()


def test_every_field_of_a_row_is_shown():
    row = Row("a", 0.5, 0.25, 3.0, 1.0, 1.0, 1.0, 4.0, 5, 6, 0.07, 8.0, "9", "10", "eleven")
    assert all(show(row) for show in COLUMNS.values())
    assert str(row).startswith(": a; torch, %: 50.00; ONNX Runtime, %: 25.00; latency, ms: 3.000")
    assert str(Row("b")) == ": b"


def test_sections_are_replaced_and_ordered(tmp_path):
    path = tmp_path / "integer.json"
    merge(path, [section("b")], ["a", "b", "c"])
    new = section("b", rows=ROWS[:1])
    found = merge(path, [section("a"), new], ["a", "b", "c"])
    assert list(found) == ["a", "b"]
    assert found["b"] == new
    assert merge(path, [], ["a", "b"]) == found
    text = page(found)
    assert text.index("Title a") < text.index("Title b")
    assert text.count("int8") == 1


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"format": 2, "sections": {}}', '{"format": 1, "sections": {"a": {"rows": []}}}'],
)
def test_a_damaged_page_is_not_overwritten(tmp_path, content):
    path = tmp_path / "integer.json"
    path.write_text(content)
    with pytest.raises(StorageError):
        merge(path, [section()], ["b"])
    assert path.read_text() == content


@pytest.fixture
def groups(monkeypatch):
    made = []

    def table(name):
        def make(setup):
            made.append((name, setup.rounds))
            assert setup.folder.is_dir()
            return section(name)

        return make

    found = {"one": {"b": table("b"), "a": table("a")}, "two": {"c": table("c")}}
    monkeypatch.setattr(command, "GROUPS", found)
    return made


def test_the_command_makes_what_is_asked_for(tmp_path, groups, capsys):
    assert command.main(["--out", str(tmp_path / "new"), "--only", "two", "--rounds", "3"]) == 0
    assert groups == [("c", 3)]
    assert command.main(["--out", str(tmp_path / "new"), "--data-root", "/x"]) == 0
    assert groups == [("c", 3), ("b", 7), ("a", 7), ("c", 7)]
    stored = json.loads((tmp_path / "new" / "integer.json").read_text())
    assert list(stored["sections"]) == ["b", "a", "c"]
    text = (tmp_path / "new" / "integer.md").read_text()
    assert f"Made with `python -m bench.integer --out {tmp_path}/new --only two`." in text
    assert "/x" not in text


def test_unknown_tables_are_refused_before_any_work(tmp_path, groups, capsys):
    assert command.main(["--out", str(tmp_path), "--only", "one,three"]) == 2
    assert "unknown tables three" in capsys.readouterr().err
    assert groups == []


def test_a_table_that_fails_leaves_the_others(tmp_path, groups, monkeypatch, capsys):
    def fail(_):
        raise StorageError("no data", where="/y", remedy="Fetch it.")

    monkeypatch.setitem(command.GROUPS, "two", {"c": fail})
    assert command.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: /y: no data. Fetch it.\n"
    assert list(json.loads((tmp_path / "integer.json").read_text())["sections"]) == ["b", "a"]


def test_the_half_model_is_named_where_it_was_used(tmp_path):
    setup = Setup(tmp_path, tmp_path, half=tmp_path / "h", rounds=3)
    told = command._command(setup, "resnet20", tmp_path)
    assert told.endswith(f"--only resnet20 --half {tmp_path}/h --rounds 3")
    assert "--half" not in command._command(setup, "linear", tmp_path)
