"""How long work is shown."""

from __future__ import annotations

import io
import sys

import pytest

from energy_model.errors import ArgumentError
from transform.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_auto_is_a_bar_on_a_terminal_and_silence_in_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert Progress("auto").mode == Progress(True).mode == "bar"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert Progress("auto").mode == Progress(False).mode == "none"


def test_a_log_has_a_line_per_stage(capsys):
    show = Progress("log")
    with show.stage("first"), show.stage("second"):
        pass
    assert capsys.readouterr().err == "first\nsecond\n"


@pytest.mark.parametrize("mode", ["none", "log", "bar"])
def test_an_error_passes_through_a_stage(mode, capsys):
    with pytest.raises(KeyError), Progress(mode).stage("work"):
        raise KeyError("mine")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", ["loud", None, 3])
def test_other_modes_are_refused(mode):
    with pytest.raises(ArgumentError, match=r"^progress: unknown mode"):
        Progress(mode)
