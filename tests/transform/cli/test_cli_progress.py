"""Progress of counted work."""

from __future__ import annotations

import io

from transform.cli.progress import counted_steps, progress_mode


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_mode_follows_the_error_stream(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert progress_mode() == "log"
    monkeypatch.setattr("sys.stderr", Terminal())
    assert progress_mode() == "bar"


def test_a_log_has_one_line_per_kind_of_step(capsys):
    with counted_steps("log") as steps:
        for done, what in enumerate(["load", "round 1", "round 1", "round 2"]):
            steps(done, 4, what)
    printed = capsys.readouterr()
    assert printed.err == "[0/4] load\n[1/4] round 1\n[3/4] round 2\n"
    assert printed.out == ""


def test_a_bar_shows_what_runs_and_leaves_stdout_alone(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with counted_steps("bar") as steps:
        steps(1, 4, "round 1")
    assert "round 1" in terminal.getvalue()
    assert "25%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_none_shows_nothing():
    with counted_steps("none") as steps:
        assert steps is None
