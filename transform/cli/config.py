"""Configurations from `key=value`: the fields of a dataclass are the options."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from energy_model.config import Config
from energy_model.errors import ArgumentError
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method
from transform.training.config import TrainConfig

_SCALARS: dict[Any, type[int | float | str]] = {int: int, float: float, str: str}
_WORDS = {"none": None, "true": True, "false": False}


def configure(
    method: str, settings: Sequence[str]
) -> str | MethodConfig | list[str | MethodConfig]:
    """The `method=` of `compress`: the name itself, or its configuration with some fields set.

    Args:
        method: A method's name or `"auto"`, or several names with commas between.
        settings: `key=value`, each a field of the method's configuration class; of several methods
            `name.key=value`.

    Raises:
        ArgumentError: An unknown method, field or value, or fields of no particular method.
    """
    names = [name.strip() for name in method.split(",")]
    if len(names) > 1:
        own = _settings_of_each(names, settings)
        return [_configured(name, own[name]) for name in names]
    return _configured(method, settings)


def _configured(method: str, settings: Sequence[str]) -> str | MethodConfig:
    if not settings:
        return method
    if method == "auto":
        raise ArgumentError(
            "there are no options before a method is chosen",
            where="--set",
            remedy="Choose one with --method; `transform methods` lists them with their options.",
        )
    spec, _ = find_method(method)
    return spec.config(
        **read_settings(spec.config, settings, "--set", f"option of method {spec.name!r}")
    )


def _settings_of_each(names: Sequence[str], settings: Sequence[str]) -> dict[str, list[str]]:
    """Settings by the method that they name: `quantize.weights=4`."""
    own: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        name, dot, rest = setting.partition(".")
        if not dot or name not in own:
            raise ArgumentError(
                f"{setting!r} does not say which method it is of",
                where="--set",
                remedy=f"Write METHOD.key=value; the methods are {', '.join(names)}.",
            )
        own[name].append(rest)
    return own


def training(
    train: bool | None, epochs: int | None, settings: Sequence[str]
) -> TrainConfig | bool | None:
    """The `train=` of `compress`.

    Args:
        train: `--train` (True), `--one-shot` (False) or neither.
        epochs: `--epochs`.
        settings: `key=value` of `--train-set`, each a field of `TrainConfig`.

    Returns:
        A configuration; `False` for one shot; `None` when nothing is said.

    Raises:
        ArgumentError: An unknown field or value, or training and one shot are both asked for.
    """
    if epochs is not None:
        settings = [f"epochs={epochs}", *settings]
    if train is False and settings:
        raise ArgumentError(
            "--one-shot trains nothing, yet training is configured",
            where=settings[0],
            remedy="Leave out --one-shot, or --epochs and --train-set.",
        )
    if train or settings:
        values = read_settings(TrainConfig, settings, "--train-set", "field of the training")
        return TrainConfig(**values)
    return train


def layer_rules(text: str | None) -> Mapping[Any, Any] | None:
    """The `layers=` of `compress` out of a JSON object; its rules are checked against the model.

    Raises:
        ArgumentError: It is no JSON object.
    """
    if text is None:
        return None
    try:
        rules = json.loads(text)
    except ValueError as error:
        rules = f"{error}"
    if isinstance(rules, dict):
        return rules
    raise ArgumentError(
        f"{text!r} is no JSON object",
        where="--layers",
        remedy='Write e.g. \'{"features.0": false, "classifier.*": {"max_sparsity": 0.9}}\'.',
    )


def read_settings(
    config: type[Config], settings: Sequence[str], option: str, kind: str
) -> dict[str, Any]:
    """Values of the fields of a configuration class out of `key=value` texts.

    Args:
        config: The class; its fields are the keys.
        settings: The texts; each key at most once.
        option: The command line's option, for errors.
        kind: What a key is called, for errors.

    Raises:
        ArgumentError: An unknown field, a bad value, or a key that stands twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, value = _setting(config, setting, option, kind)
        if key in values:
            raise ArgumentError(f"{key!r} stands twice", where=option, remedy="Keep one of them.")
        values[key] = value
    return values


def defaults(config: type[MethodConfig]) -> dict[str, Any]:
    """The fields of a configuration class and their default values."""
    return {field.name: _default(field) for field in fields(config)}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default if field.default is not MISSING else "required"


def _setting(config: type[Config], setting: str, option: str, kind: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    hints = get_type_hints(config)
    names = [field.name for field in fields(config)]
    if not equals or key not in names:
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"Did you mean {close[0]}? " if close and close[0] != key else ""
        raise ArgumentError(
            f"{setting!r} sets no {kind}",
            where=option,
            remedy=f"{hint}Write key=value; the keys are {', '.join(names)}.",
        )
    return key, parse_value(text, hints[key], f"{option} {key}")


def parse_value(text: str, hint: Any, where: str) -> Any:
    """Read a value of the type that a dataclass field is annotated with.

    Args:
        text: As the user wrote it; `none`, `true` and `false` in any case.
        hint: int, float, bool, str, None, a `Literal`, a mapping or configuration (written as a
            JSON object), a tuple of one type (written with commas), or a union of these.
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
            with suppress(ValueError):
                return _SCALARS[kind](text)
        elif get_origin(kind) is tuple:
            with suppress(ArgumentError):
                items = text.strip("()[] ").split(",")
                return tuple(parse_value(i.strip(), get_args(kind)[0], where) for i in items)
        elif _is_object(kind) and text.startswith("{"):
            with suppress(ValueError):
                return _as_object(kind, json.loads(text))
    raise ArgumentError(
        f"{text!r} is not allowed", where=where, remedy=f"Allowed: {_allowed(hint)}."
    )


def _is_object(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping | Config)


def _as_object(kind: Any, values: Any) -> Any:
    return kind.from_dict(values) if isinstance(kind, type) and issubclass(kind, Config) else values


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
        elif get_origin(kind) is tuple:
            parts.append(f"{_allowed(get_args(kind)[0])}, or several with commas between")
        elif _is_object(kind):
            parts.append("a JSON object")
        elif kind is NoneType or kind in names:
            parts.append("none" if kind is NoneType else names[kind])
    return ", or ".join(parts)
