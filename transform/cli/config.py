"""A method's configuration from `--set key=value`: the fields of its dataclass are the options."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from energy_model.errors import ArgumentError
from passes.methods.base import MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method

_SCALARS: dict[Any, type[int | float | str]] = {int: int, float: float, str: str}
_WORDS = {"none": None, "true": True, "false": False}


def configure(method: str, settings: Sequence[str]) -> str | MethodConfig:
    """The `method=` of `compress`: the name itself, or its configuration with some fields set.

    Args:
        method: A method's name or `"auto"`.
        settings: `key=value`, each a field of the method's configuration class.

    Raises:
        ArgumentError: An unknown method, field or value, or fields of no particular method.
    """
    if not settings:
        return method
    if method == "auto":
        raise ArgumentError(
            "there are no options before a method is chosen",
            where="--set",
            remedy="Choose one with --method; `transform methods` lists them with their options.",
        )
    spec, _ = find_method(method)
    return spec.config(**dict(_setting(spec, setting) for setting in settings))


def defaults(config: type[MethodConfig]) -> dict[str, Any]:
    """The fields of a configuration class and their default values."""
    return {field.name: _default(field) for field in fields(config)}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default if field.default is not MISSING else "required"


def _setting(spec: MethodSpec, setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    hints = get_type_hints(spec.config)
    names = [field.name for field in fields(spec.config)]
    if not equals or key not in names:
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"Did you mean {close[0]}? " if close and close[0] != key else ""
        raise ArgumentError(
            f"{setting!r} sets no option of method {spec.name!r}",
            where="--set",
            remedy=f"{hint}Write key=value; the keys are {', '.join(names)}.",
        )
    return key, parse_value(text, hints[key], f"--set {key}")


def parse_value(text: str, hint: Any, where: str) -> Any:
    """Read a value of the type that a dataclass field is annotated with.

    Args:
        text: As the user wrote it; `none`, `true` and `false` in any case.
        hint: int, float, bool, str, None, a `Literal`, or a union of these.
        where: The option, for the error.

    Raises:
        ArgumentError: The text is none of these.
    """
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            for choice in get_args(kind):
                if str(choice) == text:
                    return choice
        elif kind in (NoneType, bool):
            word = _WORDS.get(text.lower(), text)
            if isinstance(word, kind):
                return word
        elif kind in _SCALARS:
            try:
                return _SCALARS[kind](text)
            except ValueError:
                continue
    raise ArgumentError(
        f"{text!r} is not allowed", where=where, remedy=f"Allowed: {_allowed(hint)}."
    )


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, the narrow ones first: any text is a str."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(sorted(members, key=lambda kind: (kind is str, kind is float)))


def _allowed(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    parts: list[str] = []
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            parts.extend(map(str, get_args(kind)))
        else:
            parts.append("none" if kind is NoneType else names.get(kind, str(kind)))
    return ", or ".join(parts)
