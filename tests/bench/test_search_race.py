"""Searches side by side: what chance found, and how soon others have it."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from bench.search_race import Point, Raced, main, read_searches, to_markdown
from passes.methods.embedding.ledger import Row
from passes.methods.embedding.record import Finalist, SearchRecord


def row(place, rung, reward, status="done"):
    step, slot = divmod(place, 2)
    name = f"{place:064x}"
    ended = None if status == "failed" else reward
    return Row(step, slot, rung, name, {}, {"params": 10}, 0, status, ended, ended, 10.0, None)


def raced(label, surrogate, rows, seed=0, fidelity=(1, 3)):
    costs = {"params": 100, "macs": 1000}
    best = Finalist("0" * 64, {}, {"params": 25, "macs": 400}, 0.5, 0.6, 0.55)
    record = SearchRecord(0.9, costs, ("params",), fidelity, tuple(rows), (best,), proposing=1.0)
    return Raced(label, "macs<=50%", seed, surrogate, record, 0.71)


LADDER = raced(
    "ours",
    "embedding",
    [
        row(0, 0, 0.9),  # stopped early: its reward is of one epoch, and does not count
        row(1, 0, 0.1),
        row(1, 1, 0.4),
        row(2, 0, 0.0, "failed"),
        row(3, 0, 0.2),
        row(3, 1, 0.7),
        row(4, 0, 0.3),
        row(4, 1, 0.6),
    ],
)
CHANCE = raced("random", "random", [row(n, 0, r) for n, r in enumerate((0.1, 0.5, 0.3))], 0, (2,))


def test_students_cost_all_their_epochs_and_count_on_the_last_rung():
    assert LADDER.climb() == [
        Point(1, 1, 0.0),
        Point(2, 4, 0.4),
        Point(3, 5, 0.4),
        Point(4, 8, 0.7),
        Point(5, 11, 0.7),
    ]
    assert CHANCE.climb()[-1] == Point(3, 6, 0.5)
    assert LADDER.reached(0.5) == Point(4, 8, 0.7)
    assert LADDER.reached(0.71) is None
    assert LADDER.reached(0.4) == LADDER.passed(0.3) == Point(2, 4, 0.4)
    assert LADDER.passed(0.4) == Point(4, 8, 0.7) and LADDER.passed(0.7) is None


def test_the_page_says_when_what_chance_found_was_reached():
    page = to_markdown([LADDER, CHANCE], "a command")
    assert "    a command" in page
    assert (
        "| ours | 0 | 0.7000 | 4 of 5 | 4 of 5 | 8 | 11 | 0.5500 | 25 | 400 | 71.00 | 1.2% |"
        in page
    )
    assert "| random | 0 | 0.5000 | 2 of 3 | - | - | 6 |" in page
    assert "ours: best f 0.7000 over 1 seeds, more than random's best at 1 of 1 after 4.0" in page
    assert page.endswith("training.\n") and "random: best f 0.5000 over 1 seeds." in page
    other = raced("ours", "embedding", LADDER.record.rows, seed=1)
    assert "| ours | 1 | 0.7000 | - | - | - | 11 |" in to_markdown([CHANCE, other], "")


def write(folder, one):
    folder.mkdir()
    result = {
        "format": "transform-result",
        "version": 1,
        "recipe": {"name": "toy"},
        "cell": {
            "label": one.label,
            "budget": one.budget,
            "seed": one.seed,
            "method": {"surrogate": one.surrogate},
        },
        "metrics": {"test": {"after": one.test}},
        "search": one.record.to_dict(),
    }
    (folder / "result.json").write_text(json.dumps(result))


def test_runs_are_read_and_written(tmp_path):
    write(tmp_path / "a", LADDER)
    write(tmp_path / "b", CHANCE)
    assert read_searches([tmp_path]) == [LADDER, CHANCE]
    app = typer.Typer()
    app.command()(main)
    page = tmp_path / "race.md"
    run = CliRunner().invoke(app, [str(tmp_path), "--out", str(page)])
    assert run.exit_code == 0, run.output
    assert "4 of 5" in page.read_text()


def test_runs_without_a_search_are_refused(tmp_path):
    write(tmp_path / "a", LADDER)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    (tmp_path / "a" / "result.json").write_text(
        json.dumps({k: v for k, v in result.items() if k != "search"})
    )
    app = typer.Typer()
    app.command()(main)
    run = CliRunner().invoke(app, [str(tmp_path)])
    assert run.exit_code == 2 and "no finished search" in run.output
