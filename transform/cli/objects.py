"""What the command line imports by name: the user's `package.module:callable`."""

from __future__ import annotations

import contextlib
import difflib
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from energy_model._house import ROOMS
from energy_model.errors import ArgumentError

_FORM = "Write package.module:callable, e.g. torchvision.models:alexnet."


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Run the user's code: with the current directory on the path, its prints on stderr.

    The standard output carries only our result, so that it can be read by a script.
    """
    # Ours first: a user's `export/` must not be found in place of ours later. The zoo also makes
    # torchvision importable on a CPU-only torch.
    for name in (*ROOMS, "bench.zoo"):
        import_module(name)
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def find_object(name: str, where: str) -> Any:
    """Import `package.module:callable`; to be called within `user_code`.

    Args:
        name: Module and attribute, with a colon between; the attribute may be dotted.
        where: The argument concerned, for the errors.

    Raises:
        ArgumentError: Malformed, or no such module or attribute; close names are suggested.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not all(p.isidentifier() for p in (*module_name.split("."), *path.split("."))):
        raise ArgumentError(f"{name!r} names no callable", where=where, remedy=_form_hint(name))
    found: Any = _import(module_name, where)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ArgumentError(
                f"{module_name!r} has no {path!r}",
                where=where,
                remedy=_close(path, _public(found)) or "See the module for what it defines.",
            )
        found = getattr(found, part)
    return found


def run_user_code(function: Any, name: str, where: str) -> Any:
    """Call the user's function without arguments; to be called within `user_code`.

    Raises:
        ArgumentError: It is not callable, or it fails; the line that fails is named.
    """
    if not callable(function):
        raise ArgumentError(
            f"{name!r} is {type(function).__name__}, not a callable", where=where, remedy=_FORM
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        remedy = "It is called without arguments: name a function that needs none."
        if isinstance(error, ModuleNotFoundError):
            remedy = _missing_hint(error.name or "")
        raise ArgumentError(
            f"calling {name!r} fails with {_described(error)}", where=where, remedy=remedy
        ) from error


def _form_hint(name: str) -> str:
    stem = name.removesuffix(".py").replace("/", ".").strip(".")
    module, _, attribute = stem.rpartition(".")
    if ":" in name or not module or name.endswith(".py"):
        return _FORM
    return f"Did you mean {module}:{attribute}? {_FORM}"


def _import(name: str, where: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise ArgumentError(
                f"importing {name!r} fails with {_described(error)}",
                where=where,
                remedy=_missing_hint(missing),
            ) from error
        raise ArgumentError(
            f"there is no module {missing!r}",
            where=where,
            remedy=_close(missing, _modules_beside(missing))
            or "Modules are found in the current directory and among installed packages.",
        ) from error
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"importing {name!r} fails with {_described(error)}",
            where=where,
            remedy=f"Repair the module: `python -c 'import {name}'` shows the whole traceback.",
        ) from error


def _missing_hint(missing: str) -> str:
    room = missing.partition(".")[0]
    if room in ROOMS:
        return f"{room!r} is a package of the compiler: rename your own one of that name."
    return f"Install {room!r}, or put it into the current directory."


def _modules_beside(name: str) -> Iterable[str]:
    parent = name.rpartition(".")[0]
    if not parent:
        return [module.name for module in pkgutil.iter_modules()]
    path = getattr(sys.modules.get(parent), "__path__", [])
    return [f"{parent}.{module.name}" for module in pkgutil.iter_modules(path)]


def _public(holder: object) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("_")]


def _close(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=3)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _described(error: BaseException) -> str:
    """The error and the user's line where it happened."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, SyntaxError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__ and frame.filename[:1] != "<"]
    return f"{text} ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else text
