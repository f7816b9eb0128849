"""The user's code: found by name, run with the current directory on the path, errors typed."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from energy_model.errors import ArgumentError
from transform.cli.objects import find_object, run_user_code, user_code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the given name into the current directory."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def find(name):
    with user_code():
        return find_object(name, "MODEL")


def call(function):
    with user_code():
        return run_user_code(function, "m:f", "MODEL")


def test_a_module_of_the_current_directory_is_found_and_only_meanwhile(module, tmp_path):
    module("cli_own", "class A:\n    def net(): return 7\n")
    before = list(sys.path)
    assert find("cli_own:A.net")() == 7
    assert sys.path == before
    with user_code():
        assert sys.path[0] == str(tmp_path)


def test_installed_modules_are_found():
    assert find("torch.nn:Linear") is nn.Linear


def test_the_path_is_restored_after_an_error(module):
    before = list(sys.path)
    with pytest.raises(RuntimeError, match="boo"), user_code():
        raise RuntimeError("boo")
    assert sys.path == before


def test_prints_of_user_code_go_to_stderr(module, capsys):
    module("cli_loud", "print('hello')\ndef net(): print('again')\n")
    call(find("cli_loud:net"))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\nagain\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision.models.alexnet", r"Did you mean torchvision\.models:alexnet\?"),
        ("alexnet", "Write package.module:callable"),
        ("models/net.py", "Write package.module:callable"),
        ("m:", "names no callable"),
        (":f", "names no callable"),
        ("a b:f", "names no callable"),
        ("", "names no callable"),
        ("torch.n:Linear", r"no module 'torch\.n'\. Did you mean .*torch\.nn"),
        ("torc:nn", r"no module 'torc'\. Did you mean .*torch"),
        ("torch.nn:Linaer", r"'torch\.nn' has no 'Linaer'\. Did you mean Linear"),
        ("torch.nn.Linear.x:f", "no module"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(ArgumentError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "SyntaxError"),
        ("x = 1 / 0", r"ZeroDivisionError: division by zero \(.*cli_bad\.py:1\)"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import no_such_dependency_here", "Install 'no_such_dependency_here'"),
        ("import export.mine", "'export' is a package of the compiler: rename"),
    ],
)
def test_a_module_that_fails_to_import(module, text, message):
    module("cli_bad", text)
    with pytest.raises(ArgumentError, match=message) as caught:
        find("cli_bad:f")
    assert caught.value.__cause__ is not None


def test_a_users_package_of_our_name_does_not_replace_ours(module, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("theirs = True")
    module("cli_shadow", "import export\ndef f(): return export\n")
    assert not hasattr(call(find("cli_shadow:f")), "theirs")


def test_a_call_that_fails_names_the_users_line(module):
    module("cli_fails", "def f():\n    raise KeyError('boo')\ndef g(n): pass\n")
    with pytest.raises(ArgumentError, match=r"KeyError: 'boo' \(.*cli_fails\.py:2\)"):
        call(find("cli_fails:f"))
    with pytest.raises(ArgumentError, match=r"missing 1 required .* needs none"):
        call(find("cli_fails:g"))
    with pytest.raises(ArgumentError, match="int, not a callable"):
        call(3)


def test_a_call_that_lacks_a_module_says_which():
    def imports():
        import export.mine  # noqa: F401

    with pytest.raises(ArgumentError, match="'export' is a package of the compiler"):
        call(imports)


def test_an_interrupt_is_not_swallowed():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted)
