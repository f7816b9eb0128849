"""What a student costs, from the teacher's layers at the student's widths: nothing is built.

Every weight counts as nonzero: a student is trained, and what a teacher holds of zeros is no
property of its architecture. The size of a student's file is an upper bound: that of the teacher's
without the weights that are gone; biases, norms and nodes that go with them are left in, and every
skip takes room for its nodes and for a norm that can no longer be folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from energy_model.energy import layer_energy
from energy_model.errors import PreconditionError, UnsupportedBudget
from energy_model.hardware import Hardware
from energy_model.unit_prices import PARTS, in_units
from passes.architecture.energies import UseEnergy
from passes.architecture.steps import Step, traced_module
from passes.graph import ModelGraph, Site
from passes.quantize.widths import weight_bits
from passes.structure.geometry import arrangement_of
from passes.structure.groups import ChannelGroups
from passes.structure.lines import Lines, Side

_COLUMNS = ("params", "macs", "nonzeros", "weight_bits", "sparse_macs")
KEYS = ("energy", "size", *_COLUMNS)
# Nodes, names and the scale of a skip in a file; the norm after it has four vectors.
_SKIP_BYTES, _NORM_VECTORS = 1024, 4

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """Elements of a tensor: a factor times the kept lengths of its cut dimensions."""

    step: int
    factor: int
    lines: tuple[int, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _SiteEnergy:
    """Energy of a weight that is cut, over all its uses."""

    step: int
    sides: tuple[Side, Side]
    uses: tuple[UseEnergy, ...]
    known: dict[tuple[int, int], int]

    def parts(self, lengths: Sequence[int]) -> int:
        """In 1/256 of the hardware's unit; `lengths` are those of all lines."""
        first, second = self.sides
        size = (
            first.size if first.line is None else lengths[first.line],
            second.size if second.line is None else lengths[second.line],
        )
        found = self.known.get(size)
        if found is None:
            full = first.size, second.size
            found = self.known[size] = sum(use.parts(*size, full) for use in self.uses)
        return found


class StudentCosts:
    """Costs of every student of a teacher.

    Args:
        graph: The teacher, traced.
        groups: Its channel groups; the units of a free one hold as many channels each.
        steps: Its steps.
        hardware: The accelerator of the energy model.
        keys: Which costs, of `KEYS`.
        file_bytes: Of the teacher's ONNX file, for `"size"`.

    Raises:
        UnsupportedBudget: A cost cannot be counted without building the student.
        PreconditionError: Inputs of the teacher are masked.
    """

    def __init__(
        self,
        graph: ModelGraph,
        groups: ChannelGroups,
        steps: Sequence[Step],
        hardware: Hardware,
        keys: Sequence[str],
        file_bytes: int | None = None,
    ) -> None:
        self.keys = checked_keys(keys)
        if "size" in self.keys and file_bytes is None:
            raise UnsupportedBudget(
                "the size of a student's file is counted from that of the model's, which is "
                "written only if the budget limits it",
                where="size",
                remedy='Add a limit on it, such as "size<=100%".',
            )
        self._file_bytes = file_bytes or 0
        self._lines = Lines(graph, groups)
        owners = owning_steps(graph, steps)
        self._energies: list[_SiteEnergy] = []
        self._fixed_energy: list[tuple[int, int]] = []
        placed = site_steps(graph, steps)
        terms = [term for at, site in placed for term in self._site(graph, at, site, hardware)]
        for tensor in traced_module(graph).parameters():
            sides = self._lines.sides(tensor)
            terms.append(self._elements(owners[id(tensor)], sides, params=1))
        self._arrays(terms, groups)
        self._element = min(
            (p.element_size() for p in traced_module(graph).parameters()), default=4
        )
        self._weights_in_all = sum(site.size for site in graph.sites if not site.computed)
        widest = max((line.size for line in self._lines.all), default=0)
        self._skip_bytes = _SKIP_BYTES + _NORM_VECTORS * self._element * widest

    def _site(self, graph: ModelGraph, step: int, site: Site, hardware: Hardware) -> list[_Term]:
        if any(use.inputs is not None for use in site.uses):
            raise PreconditionError(
                "some of its inputs are masked", where=site.name, remedy="Search first, then mask."
            )
        if site.computed:
            self._fix_energy(step, site, hardware)
            macs = site.macs()
            return [self._term(step, 1, (), {"macs": macs, "sparse_macs": macs})]
        sides = self._lines.of_site(site) or (Side(site.size),)
        each = site.macs_per_weight()
        once = {"nonzeros": 1, "weight_bits": weight_bits(graph, site), "sparse_macs": each}
        cut = any(side.line is not None for side in sides)
        if not cut:
            self._fix_energy(step, site, hardware)
            return [
                self._term(step, site.size, (), once),
                self._term(step, 1, (), {"macs": site.macs()}),
            ]
        uses = []
        for use in site.uses:
            how = arrangement_of(graph, self._lines, site, use)
            if how is None:
                raise PreconditionError(
                    "its energy at other widths cannot be counted",
                    where=site.name,
                    remedy="Freeze its channel groups, as restricted(groups, graph) does.",
                )
            uses.append(UseEnergy(use, how, hardware))
        self._energies.append(_SiteEnergy(step, (sides[0], sides[1]), tuple(uses), {}))
        return [self._elements(step, sides, **once, macs=each)]

    def _fix_energy(self, step: int, site: Site, hardware: Hardware) -> None:
        energy = sum(
            layer_energy(use.shape, hardware, widths=use.widths).relaxed * use.count
            for use in site.uses
        )
        self._fixed_energy.append((step, round(energy * PARTS)))

    def _elements(self, step: int, sides: Sequence[Side], **weights: int) -> _Term:
        factor, lines = 1, []
        for side in sides:
            if side.line is None:
                factor *= side.size
            else:
                lines.append(side.line)
        return self._term(step, factor, tuple(lines), weights)

    def _term(
        self, step: int, factor: int, lines: tuple[int, ...], weights: Mapping[str, int]
    ) -> _Term:
        # Parameters and multiply-accumulates are always counted: the sketch shows them.
        return _Term(step, factor, lines, tuple(weights.get(key, 0) for key in _COLUMNS))

    def _arrays(self, terms: Sequence[_Term], groups: ChannelGroups) -> None:
        lines = self._lines.all
        numbers = {group.name: number for number, group in enumerate(groups)}
        units = np.array([group.units for group in groups], dtype=np.int64)
        # The last line is as long as one index: it stands for dimensions that a tensor lacks.
        self._slopes = np.zeros((len(lines) + 1, len(groups)), dtype=np.int64)
        for row, line in enumerate(lines):
            for name, counts in line.counts.items():
                self._slopes[row, numbers[name]] = counts[0]
        sizes = np.array([line.size for line in lines] + [1], dtype=np.int64)
        self._base = sizes - self._slopes @ units
        depth = max((len(term.lines) for term in terms), default=0)
        padded = [(*term.lines, *[len(lines)] * (depth - len(term.lines))) for term in terms]
        self._places = np.array(padded, dtype=np.int64).reshape(len(terms), depth).T
        self._factors = np.array([term.factor for term in terms], dtype=np.int64)
        self._weights = np.array([term.weights for term in terms], dtype=np.int64)
        self._steps = np.array([term.step for term in terms], dtype=np.int64)

    def lengths(self, kept: Integers) -> Integers:
        """How many indices stay along every line; the last is 1.

        Args:
            kept: Units of every group, frozen ones in full: `(groups,)`.
        """
        found: Integers = self._base + self._slopes @ kept
        return found

    def values(self, kept: Integers, dead: NDArray[np.bool_], skips: int) -> dict[str, int | float]:
        """All costs of a student.

        Args:
            kept: As for `lengths`.
            dead: Of every step, whether it is gone: `(steps,)`.
            skips: Skip connections with a scale of their own.
        """
        lengths = self.lengths(kept)
        totals = self._elements_of(lengths, dead) @ self._weights
        found: dict[str, int | float] = dict(zip(_COLUMNS, totals.tolist(), strict=True))
        found["params"] += skips
        if "size" in self.keys:
            gone = self._weights_in_all - int(found["nonzeros"])
            found["size"] = self._file_bytes - self._element * gone + self._skip_bytes * skips
        if "energy" in self.keys:
            found["energy"] = in_units(self._energy(lengths.tolist(), dead))
        return {key: found[key] for key in self.keys}

    def by_layer(
        self, kept: Integers, dead: NDArray[np.bool_], layers: Integers
    ) -> list[list[int]]:
        """Parameters and multiply-accumulates of every layer of a sketch.

        Args:
            kept: As for `lengths`.
            dead: As for `values`.
            layers: Which terms belong to which layer: `layers_of_terms`.
        """
        elements = self._elements_of(self.lengths(kept), dead)[:, None]
        found: list[list[int]] = (layers @ (elements * self._weights[:, :2])).tolist()
        return found

    def layers_of_terms(self, layer_of: Sequence[int], count: int) -> Integers:
        """Ones where a term belongs to a layer: int64 `(layers, terms)`.

        Args:
            layer_of: Of every step the number of its layer, or -1.
            count: Number of layers.
        """
        numbers = np.array(layer_of, dtype=np.int64)[self._steps]
        found: Integers = (numbers == np.arange(count)[:, None]).astype(np.int64)
        return found

    def _elements_of(self, lengths: Integers, dead: NDArray[np.bool_]) -> Integers:
        found: Integers = self._factors * ~dead[self._steps]
        for line in self._places:
            found = found * lengths[line]
        return found

    def _energy(self, lengths: Sequence[int], dead: NDArray[np.bool_]) -> int:
        gone = dead.tolist()
        total = sum(parts for step, parts in self._fixed_energy if not gone[step])
        for site in self._energies:
            if not gone[site.step]:
                total += site.parts(lengths)
        return total


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys, if all of them can be counted in closed form.

    Raises:
        UnsupportedBudget: One cannot.
    """
    for key in keys:
        if key not in KEYS:
            raise UnsupportedBudget(
                f"the limit {key!r} cannot be counted before a student is built",
                where="budget",
                remedy=f"Limits that can are {', '.join(KEYS)}.",
            )
    return tuple(dict.fromkeys(keys))


def owning_steps(graph: ModelGraph, steps: Sequence[Step]) -> dict[int, int]:
    """The first step that holds each parameter, by `id` of the parameter.

    Args:
        graph: The traced model.
        steps: Its steps.
    """
    found: dict[int, int] = {}
    for step in steps:
        for tensor in held_tensors(graph, step):
            found.setdefault(id(tensor), step.index)
    for tensor in traced_module(graph).parameters():
        found.setdefault(id(tensor), len(steps) - 1)  # nothing reads it: it stays, as the output
    return found


def held_tensors(graph: ModelGraph, step: Step) -> list[Tensor]:
    """Parameters of the layer that a step calls, or the one that it reads."""
    module = traced_module(graph)
    if step.node.op == "call_module":
        return list(module.get_submodule(str(step.node.target)).parameters())
    if step.node.op == "get_attr":
        owner, _, name = str(step.node.target).rpartition(".")
        tensor = getattr(module.get_submodule(owner), name, None)
        return [tensor] if isinstance(tensor, Tensor) else []
    return []


def site_steps(graph: ModelGraph, steps: Sequence[Step]) -> list[tuple[int, Site]]:
    """All sites, each with the place of the step that holds it."""
    owners = owning_steps(graph, steps)
    calls = [(f"{s.node.target}.", s.index) for s in steps if s.node.op == "call_module"]
    found = []
    for site in graph.sites:
        if site.computed:
            name = f"{site.name}."
            place = next((index for path, index in calls if name.startswith(path)), len(steps) - 1)
        else:
            place = owners.get(id(graph.parameter(site)), len(steps) - 1)
        found.append((place, site))
    return found
