"""Costs that follow a keep-state: only what a change touches is counted anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.unit_prices import plain
from passes.structure.cost_terms import Term, View
from passes.structure.lines import Line


class Reach:
    """What each group reaches: the lines that it cuts, and the terms that depend on them.

    Args:
        terms: The parts of the costs that depend on the state.
        lines: All lines.
        groups: Names of the free groups.

    Attributes:
        lines: By group, of every line that it cuts the number, how many indices go with each unit,
            `(units,)`, and how many go with any of them: 0 if units differ.
        terms: By group, the numbers of the terms.
        neighbours: By group, those that share a term with it, itself included.
    """

    def __init__(self, terms: Sequence[Term], lines: Sequence[Line], groups: Iterable[str]) -> None:
        self.lines: dict[str, list[tuple[int, NDArray[np.int64], int]]] = {}
        self.terms: dict[str, list[int]] = {}
        for name in groups:
            self.lines[name] = list(_cut_lines(lines, name))
            own = {number for number, _, _ in self.lines[name]}
            self.terms[name] = [i for i, t in enumerate(terms) if own & set(t.lines)]
        sets = {name: set(touched) for name, touched in self.terms.items()}
        self.neighbours = {
            name: frozenset(other for other in sets if own & sets[other] or other == name)
            for name, own in sets.items()
        }


def _cut_lines(lines: Sequence[Line], group: str) -> Iterator[tuple[int, NDArray[np.int64], int]]:
    for number, line in enumerate(lines):
        counts = line.counts.get(group)
        if counts is not None:
            yield number, counts, int(counts[0]) if (counts == counts[0]).all() else 0


class Tally:
    """Costs of a keep-state that changes by a few units at a time.

    Args:
        terms: The parts of the costs that depend on the state.
        constant: The rest of each cost.
        reach: What the groups reach, of the same terms and lines.
        view: The state to start from; it is changed.
    """

    def __init__(
        self, terms: Sequence[Term], constant: Sequence[float], reach: Reach, view: View
    ) -> None:
        self._terms, self._reach, self._view = terms, reach, view
        self._parts = [term.value(view) for term in terms]
        sums: list[float] = list(constant)
        for term, part in zip(self._terms, self._parts, strict=True):
            sums = [a + weight * part for a, weight in zip(sums, term.weights, strict=True)]
        self._values = tuple(map(plain, sums))

    @property
    def values(self) -> tuple[int | float, ...]:
        """The costs, in the order of the keys."""
        return self._values

    @property
    def state(self) -> dict[str, NDArray[np.bool_]]:
        """A copy of the state."""
        return {name: keep.copy() for name, keep in self._view.state.items()}

    def neighbours(self, group: str) -> frozenset[str]:
        """The groups whose savings change when units of a group are flipped, itself included."""
        return self._reach.neighbours[group]

    def after(self, group: str, units: NDArray[Any]) -> tuple[int | float, ...]:
        """What the costs would be if some units of a group were flipped.

        Args:
            group: The group's name.
            units: Indices of the units, each once: those that stay go, the others come back.
        """
        view = self._view
        lengths = view.lengths.copy()
        values, _ = self._flip(group, units)
        view.lengths[:] = lengths
        view.state[group][units] ^= True
        return values

    def apply(self, group: str, units: NDArray[Any]) -> None:
        """Flip some units of a group; see `after`."""
        self._values, parts = self._flip(group, units)
        for index, part in zip(self._reach.terms[group], parts, strict=True):
            self._parts[index] = part

    def _flip(self, group: str, units: NDArray[Any]) -> tuple[tuple[int | float, ...], list[float]]:
        """Change the view; the costs that it has now, and the terms that changed."""
        view = self._view
        keep = view.state[group]
        added = 1 - 2 * keep[units].astype(np.int64)
        number = int(added.sum())
        keep[units] ^= True
        for line, counts, alike in self._reach.lines[group]:
            view.lengths[line] += alike * number if alike else int(counts[units] @ added)
        values: list[float] = list(self._values)
        parts: list[float] = []
        for index in self._reach.terms[group]:
            term = self._terms[index]
            part = term.value(view)
            parts.append(part)
            change = part - self._parts[index]
            for i, weight in enumerate(term.weights):
                values[i] += weight * change
        return tuple(map(plain, values)), parts
