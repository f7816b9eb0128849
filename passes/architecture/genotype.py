"""The genotype: which architecture is meant, as plain data that can be hashed and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from energy_model.errors import ArgumentError

_FIELDS = ("removed", "widths", "skips")


@dataclass(frozen=True, slots=True)
class Genotype:
    """A student, as what distinguishes it from its teacher; `Genotype()` is the teacher.

    Names are those that the search space gives. Whether they exist there, and fit together, is for
    the search space to say.

    Attributes:
        removed: Names of the removed parts, sorted.
        widths: `(channel group, units kept)`, sorted, of groups narrower than the teacher's.
        skips: `(source, target)` of the added skip connections, sorted.

    Raises:
        ArgumentError: A field is not as described.
    """

    removed: tuple[str, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    skips: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_names(self.removed)
        _check_pairs("widths", self.widths, int)
        _check_pairs("skips", self.skips, str)
        _check_sorted("removed", self.removed, self.removed)
        _check_sorted("widths", self.widths, tuple(name for name, _ in self.widths))
        _check_sorted("skips", self.skips, self.skips)
        for name, units in self.widths:
            if units < 1:
                raise _bad(f"the group {name!r} keeps {units} units", "widths", "Keep at least 1.")

    @classmethod
    def of(
        cls,
        removed: Iterable[str] = (),
        widths: Mapping[str, int] | None = None,
        skips: Iterable[tuple[str, str]] = (),
    ) -> Genotype:
        """A genotype from its parts in any order, each named once or several times.

        Raises:
            ArgumentError: As the class.
        """
        return cls(
            tuple(sorted(set(removed))),
            tuple(sorted((widths or {}).items())),
            tuple(sorted(set(skips))),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: the same in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, which `from_dict` reads."""
        return {
            "removed": list(self.removed),
            "widths": [list(pair) for pair in self.widths],
            "skips": [list(pair) for pair in self.skips],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Genotype:
        """Reads what `to_dict` wrote, also after a passage through JSON.

        Args:
            values: Untrusted: anything that JSON can hold.

        Raises:
            ArgumentError: It is no genotype.
        """
        if not isinstance(values, Mapping):
            raise _bad(f"is a {type(values).__name__}, not an object", "genotype")
        if set(values) != set(_FIELDS):
            raise _bad(f"has the fields {sorted(map(str, values))}, not {list(_FIELDS)}", "")
        for field in _FIELDS:
            if not isinstance(values[field], list | tuple):
                raise _bad(f"is a {type(values[field]).__name__}, not a list", field)
        pairs = {
            field: tuple(tuple(p) if isinstance(p, list) else p for p in values[field])
            for field in ("widths", "skips")
        }
        return cls(tuple(values["removed"]), **pairs)


def _bad(what: str, field: str, remedy: str = "Give what Genotype.to_dict wrote.") -> ArgumentError:
    return ArgumentError(what, where=f"genotype.{field}" if field else "genotype", remedy=remedy)


def _check_names(names: Any) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise _bad(f"{names!r} is no tuple of names", "removed")


def _check_pairs(field: str, pairs: Any, kind: type) -> None:
    if not isinstance(pairs, tuple):
        raise _bad(f"{pairs!r} is no tuple of pairs", field)
    for pair in pairs:
        fits = (
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], kind)
            and not isinstance(pair[1], bool)
        )
        if not fits:
            raise _bad(f"{pair!r} is no pair of a name and {kind.__name__}", field)


def _check_sorted(field: str, given: tuple[Any, ...], keys: tuple[Any, ...]) -> None:
    if len(set(keys)) != len(keys) or list(keys) != sorted(keys):
        raise _bad(
            f"{given!r} is not sorted, or names something twice",
            field,
            "Genotype.of sorts what it is given.",
        )
