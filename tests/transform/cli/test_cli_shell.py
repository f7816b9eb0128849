"""Exit codes and help texts, on commands of their own."""

from __future__ import annotations

import inspect

import pytest
import typer
from typer.testing import CliRunner

from energy_model import errors
from transform.cli.shell import EXIT_CODES, Command, Commands, exit_code


def app_raising(error):
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def fail() -> None:
        """First line
        goes on.

        Second paragraph.
        """
        raise error

    @app.command()
    def other() -> None:
        pass

    return app


INFEASIBLE = errors.InfeasibleBudget("too low", limit="energy", asked=1, tightest=2)


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (errors.ArgumentError("wrong", where="x", remedy="Do y."), 1, "error: x: wrong. Do y.\n"),
        (INFEASIBLE, 3, "error: too low\n"),
        (errors.UnsupportedBudget("no method"), 4, "error: no method\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_exit_codes(error, code, printed):
    result = CliRunner().invoke(app_raising(error), ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, printed, "")


def test_an_error_of_ours_keeps_its_traceback():
    result = CliRunner().invoke(app_raising(ZeroDivisionError("bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_bad_usage_is_2():
    assert CliRunner().invoke(app_raising(None), ["fial"]).exit_code == 2


def test_every_typed_error_has_a_documented_code():
    kinds = [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.CompressionError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        code = exit_code(kind.__new__(kind))
        expected = {errors.InfeasibleBudget: 3, errors.UnsupportedBudget: 4}.get(kind, 1)
        assert code == expected
        assert f"{code} " in EXIT_CODES


def test_help_joins_the_lines_of_a_paragraph():
    printed = CliRunner().invoke(app_raising(None), ["fail", "--help"]).stdout
    assert "First line goes on." in printed
    assert "Second paragraph." in printed
    assert "goes on. Second" not in printed
