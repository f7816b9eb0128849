"""Rules by name: ours, those of other packages, and those that a program adds."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from energy_model.errors import ArgumentError, CompressionError
from passes.dynamic.rule import RULES, Rule
from passes.entries import loaded, told

GROUP = "transform.rules"
_ADDED: dict[str, Rule] = {}


def add_rule(rule: Rule) -> None:
    """Make a rule known by its name, in this process.

    A package makes one known everywhere, on the command line too, by an entry point of the group
    `transform.rules` with the same name.

    Raises:
        ArgumentError: Another rule has this name.
    """
    known = rules().get(rule.name, rule)
    if known != rule:
        raise ArgumentError(
            "another rule has this name", where=f"rule {rule.name!r}", remedy="Choose another."
        )
    if rule.name not in RULES:
        _ADDED[rule.name] = rule


def rules() -> dict[str, Rule]:
    """Every known rule, by name.

    Raises:
        CompressionError: A rule of another package cannot be loaded; it is named.
    """
    found = dict(RULES) | _ADDED
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        rule, where = loaded(entry, "rule"), told(entry)
        own = isinstance(rule, Rule) and rule.name == entry.name
        if not own or found.get(entry.name, rule) != rule:
            raise CompressionError(
                f"an entry point of {GROUP} must be a Rule with a name of its own", where=where
            )
        found[entry.name] = rule
    return found


def find_rule(name: str) -> Rule:
    """The rule of a name.

    Raises:
        ArgumentError: There is none; close names are suggested.
    """
    if name in RULES:  # without a look at installed packages
        return RULES[name]
    known = rules()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ArgumentError(
            f"unknown rule {name!r}",
            where="SparseTraining.rule",
            remedy=f"{hint}There are {sorted(known)}; add_rule() adds one.",
        )
    return known[name]
