"""Configurations: frozen dataclasses that validate and serialise themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from energy_model.errors import ArgumentError


@dataclass(frozen=True)
class Config:
    """Base of every configuration.

    Subclasses are frozen dataclasses, validate in `__post_init__` and raise `ArgumentError`.
    """

    version: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, with the name of the class and its version."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {"config": type(self).__name__, "version": self.version, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ArgumentError: Another class, a newer version, or an unknown field.
        """
        values = dict(data)
        name, version = values.pop("config", cls.__name__), values.pop("version", cls.version)
        known = {field.name for field in fields(cls)}
        if name != cls.__name__:
            raise ArgumentError(f"this is the configuration of {name}", where=cls.__name__)
        if not isinstance(version, int) or version > cls.version:
            raise ArgumentError(
                f"version {version!r} is newer than {cls.version}",
                where=cls.__name__,
                remedy="Read it with the release that wrote it, or a newer one.",
            )
        if unknown := sorted(set(values) - known):
            raise ArgumentError(
                f"unknown fields {unknown}",
                where=cls.__name__,
                remedy=f"The fields are {sorted(known)}.",
            )
        return cls(**values)

    def _require(self, field: str, condition: bool, allowed: str) -> None:
        """Raise unless a field's value is allowed."""
        if not condition:
            raise ArgumentError(
                f"{getattr(self, field)!r} is not allowed",
                where=f"{type(self).__name__}.{field}",
                remedy=f"Allowed: {allowed}.",
            )


def _plain(value: Any) -> Any:
    """JSON has lists only, and no classes."""
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
