"""Methods by name, found through the entry point group `transform.methods`."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from energy_model.errors import ArgumentError, CompressionError
from passes.entries import loaded, told
from passes.methods.base import MethodSpec
from passes.methods.config import MethodConfig


def methods() -> dict[str, MethodSpec]:
    """Every registered method, by name, in alphabetical order.

    Ours come in by the same door as a stranger's.

    Raises:
        CompressionError: A registered method cannot be loaded; it is named.
    """
    found: dict[str, MethodSpec] = {}
    for entry in sorted(entry_points(group=MethodSpec.GROUP), key=lambda e: e.name):
        spec, where = loaded(entry, "method"), told(entry)
        if not isinstance(spec, MethodSpec) or spec.name != entry.name:
            raise CompressionError(
                "an entry point of transform.methods must be a MethodSpec of the same name",
                where=where,
            )
        if spec != found.get(entry.name, spec):
            raise CompressionError(
                "another package registers a method of this name",
                where=where,
                remedy="Uninstall one of them.",
            )
        found[entry.name] = spec
    return found


def find_method(method: str | MethodConfig) -> tuple[MethodSpec, MethodConfig]:
    """The method behind a name or a configuration.

    Raises:
        ArgumentError: Unknown name or configuration class; close names are suggested.
    """
    known = methods()
    if isinstance(method, MethodConfig):
        for spec in known.values():
            if type(method) is spec.config:
                return spec, method
        raise ArgumentError(
            f"no registered method is configured by {type(method).__name__}", where="method"
        )
    if not isinstance(method, str):
        raise ArgumentError(
            f"{method!r} is not a method",
            where="method",
            remedy=f"Pass a name out of {sorted(known)}, or a configuration object.",
        )
    if method not in known:
        close = difflib.get_close_matches(method, known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ArgumentError(
            f"unknown method {method!r}",
            where="method",
            remedy=f"{hint}There are {sorted(known)}.",
        )
    spec = known[method]
    return spec, spec.config()
