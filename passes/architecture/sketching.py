"""The sketch of a student in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passes.architecture.costs import StudentCosts
from passes.architecture.phenotype import Phenotype
from passes.architecture.sketch import (
    Layer,
    Sketch,
    described,
    geometry,
    pairs_of,
    sites_by_step,
    width,
    with_constants,
    without,
)
from passes.architecture.structure import Structure

# Sketched layers that are kept for other students that have the same.
_MOST_LAYERS = 100_000


class Sketcher:
    """Sketches of students.

    Args:
        structure: The teacher.
        costs: What its students cost.
    """

    def __init__(self, structure: Structure, costs: StudentCosts) -> None:
        self._structure, self._costs = structure, costs
        steps, chains = structure.steps, structure.chains
        self._terms = costs.layers_of_terms(with_constants(steps, structure.layer_of), len(chains))
        sites = sites_by_step(structure.graph, steps)
        self._geometry = {
            index: geometry(steps, index, sites) for chain in chains for index in chain.steps
        }
        self._known: dict[tuple[object, ...], Layer] = {}
        # Values whose width a sketch shows: what each step of a layer reads and returns.
        shown = {index for chain in chains for index in chain.steps}
        shown |= {steps[index].data for index in shown}
        self._places = {index: row for row, index in enumerate(sorted(shown))}
        self._base, self._slopes = self._widths(sorted(shown))
        whole = np.array([rule.units for rule in structure.rules], dtype=np.int64)
        nothing = np.zeros(len(steps), dtype=bool)
        found = costs.by_layer(whole, nothing, self._terms)
        self._removed = [
            without(self._described(number, chain.steps, found[number], None))
            for number, chain in enumerate(chains)
        ]

    def _widths(self, shown: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Channels of values as a sum over kept units: what is always there, and by group."""
        structure = self._structure
        base = np.zeros(len(shown), dtype=np.int64)
        slopes = np.zeros((len(shown), len(structure.groups)), dtype=np.int64)
        for row, index in enumerate(shown):
            step = structure.steps[index]
            size = width(step)
            if size:
                held = structure.maps.channels(step.node, step.channel, size)
                for number, counts in held.items():
                    if not structure.groups[number].frozen:
                        slopes[row, number] = counts[0]
                        size -= int(counts.sum())
            base[row] = size
        return base, slopes

    def _described(
        self,
        number: int,
        left: tuple[int, ...],
        costs: Sequence[int],
        widths: tuple[int, int] | None,
    ) -> Layer:
        steps = self._structure.steps
        name = steps[self._structure.chains[number].steps[0]].label
        return described(steps, left, name, self._geometry[left[0]], costs, widths)

    def sketch(self, phenotype: Phenotype) -> Sketch:
        """The sketch of a student; see `SearchSpace.sketch`."""
        structure, gone = self._structure, phenotype.dead.tolist()
        widths = (self._base + self._slopes @ phenotype.kept).tolist()
        costs = self._costs.by_layer(phenotype.kept, phenotype.dead, self._terms)
        reach = structure.reach(phenotype.resolved)
        layers, direct = [], []
        for number, chain in enumerate(structure.chains):
            left = tuple(index for index in chain.steps if not gone[index])
            bits = 0
            for index in left:
                for source in structure.steps[index].inputs:
                    bits |= reach[source]
            direct.append(bits)
            if not left:
                layers.append(self._removed[number])
                continue
            data = structure.steps[left[0]].data
            ends = widths[self._places[data]], widths[self._places[left[-1]]]
            key = (left, *costs[number], *ends)
            layer = self._known.get(key)
            if layer is None:
                layer = self._described(number, left, costs[number], ends)
                if len(self._known) >= _MOST_LAYERS:
                    self._known.clear()
                self._known[key] = layer
            layers.append(layer)
        added = [0] * len(layers)
        for source, target in phenotype.skips:
            added[structure.layer_of[target]] |= 1 << structure.layer_of[source]
        skips = pairs_of(added)
        return Sketch(tuple(layers), tuple(sorted({*pairs_of(direct), *skips})), skips)
