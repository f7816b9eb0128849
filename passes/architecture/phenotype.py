"""From a genotype to what it makes of the teacher: which steps go, which units stay, what is added.

Every genotype whose names are known has a phenotype; what contradicts itself is resolved in a fixed
way, so that the genotype of a phenotype (`canonical`) is one of equals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from passes.architecture.coupling import Merge, components
from passes.architecture.genotype import Genotype
from passes.architecture.removals import Part
from passes.architecture.steps import WEIGHTED
from passes.architecture.structure import Structure


@dataclass(frozen=True, slots=True, eq=False)
class Phenotype:
    """What a genotype makes of the teacher.

    Attributes:
        parts: Removed parts, none inside another, in order of their results.
        resolved: Of every step the step whose value takes its place.
        dead: Of every step, whether it is gone: `(steps,)`.
        skips: Added skips as places of source and target, sorted; sources and targets stay.
        dropped: Skips of the genotype that are none here, and why.
        kept: Units of every group: `(groups,)`; those of frozen groups are all.
        listed: Groups that are narrower than the teacher's and still exist.
        fixed: Of every group, whether it stays as wide as it is in the teacher.
    """

    parts: tuple[Part, ...]
    resolved: list[int]
    dead: NDArray[np.bool_]
    skips: tuple[tuple[int, int], ...]
    dropped: tuple[tuple[tuple[str, str], str], ...]
    kept: NDArray[np.int64]
    listed: tuple[int, ...]
    fixed: tuple[bool, ...]


def phenotype_of(structure: Structure, genotype: Genotype) -> Phenotype:
    """What a genotype makes of the teacher.

    Raises:
        ArgumentError: A part, a group or a skip is not one of this teacher's.
    """
    parts = _outermost(_named_parts(structure, genotype))
    resolved, sums = _resolved(structure, parts)
    if sums and not structure.policy.doubled:
        # A sum of one value with itself is that value: the block that ends there is gone.
        blocks = {p.exit: p for p in structure.parts.values() if p.kind == "block"}
        parts = _outermost([*parts, *(blocks[s] for s in sums if s in blocks)])
        resolved, sums = _resolved(structure, parts)
    dead = np.zeros(len(structure.steps), dtype=bool)
    for part in parts:
        dead[list(part.steps)] = True
    dead[sums] = True
    skips, dropped = _skips(structure, genotype, resolved, dead)
    merges = [part.merge for part in parts] + [structure.skips[skip].merge for skip in skips]
    kept, fixed = _widths(structure, dict(genotype.widths), merges)
    exists = np.any(structure.group_steps & ~dead, axis=1).tolist()
    narrow = [n for n, rule in enumerate(structure.rules) if kept[n] < rule.units and exists[n]]
    return Phenotype(
        parts,
        resolved,
        dead,
        skips,
        dropped,
        np.array(kept, dtype=np.int64),
        tuple(narrow),
        tuple(fixed),
    )


def canonical(structure: Structure, phenotype: Phenotype) -> Genotype:
    """The genotype that stands for all with this phenotype."""
    label = [step.label for step in structure.steps]
    return Genotype.of(
        (part.name for part in phenotype.parts),
        {structure.groups[n].name: int(phenotype.kept[n]) for n in phenotype.listed},
        ((label[source], label[target]) for source, target in phenotype.skips),
    )


def _named_parts(structure: Structure, genotype: Genotype) -> list[Part]:
    unknown = [name for name in genotype.removed if name not in structure.parts]
    unknown += [name for name, _ in genotype.widths if name not in structure.number]
    unknown += [name for pair in genotype.skips for name in pair if name not in structure.by_label]
    if unknown:
        raise ArgumentError(
            f"{', '.join(map(repr, unknown[:3]))}: no such part, group or value of this model",
            where=f"genotype {genotype.digest[:12]}",
            remedy="Use genotypes with the model and the policy that they were made for.",
        )
    return [structure.parts[name] for name in genotype.removed]


def _outermost(parts: list[Part]) -> tuple[Part, ...]:
    """Parts that lie in no other, each once, in order of their results."""
    unique = {part.name: part for part in parts}.values()
    found: list[Part] = []
    for part in sorted(unique, key=lambda p: (-len(p.steps), p.exit)):
        if not any(part.steps <= other.steps for other in found):
            found.append(part)
    return tuple(sorted(found, key=lambda p: p.exit))


def _resolved(structure: Structure, parts: tuple[Part, ...]) -> tuple[list[int], list[int]]:
    """Whose value takes the place of each step's, and the sums that are left with one value."""
    entries = {part.exit: part.entry for part in parts}
    resolved = list(range(len(structure.steps)))
    if not entries:
        return resolved, []
    origins, doubled = structure.origins, structure.policy.doubled
    sums = {total: (a, b) for total, a, b in structure.sums}
    single = []
    for index in sorted(entries.keys() | sums.keys() if not doubled else entries):
        if index in entries:
            resolved[index] = resolved[entries[index]]
        else:
            a, b = (resolved[i] for i in sums[index])
            if _through(a, origins, resolved) == _through(b, origins, resolved):
                resolved[index] = a
                single.append(index)
    return resolved, single


def _through(index: int, origins: list[int], resolved: list[int]) -> int:
    """The step that computes a value, through layers that do nothing and parts that are gone."""
    while True:
        before = resolved[origins[index]]
        if before == index:
            return index
        index = before


def _skips(
    structure: Structure, genotype: Genotype, resolved: list[int], dead: NDArray[np.bool_]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[tuple[str, str], str], ...]]:
    if not genotype.skips:
        return (), ()
    reach = structure.reach(resolved)
    found: set[tuple[int, int]] = set()
    dropped = []
    for pair in genotype.skips:
        source, target = (structure.by_label[name] for name in pair)
        source = resolved[source]
        why = ""
        if dead[source] or dead[target]:
            why = "one of its ends is removed"
        elif (source, target) not in structure.skips:
            why = "these two cannot be connected"
        elif reach[structure.steps[target].data] >> structure.layer_of[source] & 1:
            why = "these two are connected"
        if why:
            dropped.append((pair, why))
        else:
            found.add((source, target))
    return tuple(sorted(found)), tuple(dropped)


def _widths(
    structure: Structure, asked: Mapping[str, int], merges: list[Merge]
) -> tuple[list[int], list[bool]]:
    """Units of every group, and which cannot be narrower."""
    groups, rules = structure.groups, structure.rules
    count = len(rules)
    roots = components(count, merges)
    frozen = {roots[n] for n in range(count) if groups[n].frozen}
    frozen |= {roots[n] for merge in merges for n in merge.frozen}
    fixed = [root in frozen for root in roots]
    if structure.ties:
        roots = components(count, [*merges, *structure.ties])
    least: dict[int, int] = {}
    for name, units in asked.items():
        number = structure.number[name]
        if not fixed[number]:
            root = roots[number]
            least[root] = min(units, least.get(root, units))
    kept = [rule.units for rule in rules]
    members: dict[int, list[int]] = {}
    for number in range(count):
        if roots[number] in least and not fixed[number]:
            members.setdefault(roots[number], []).append(number)
    for root, numbers in members.items():
        units = _allowed(structure, numbers, least[root])
        for number in numbers:
            kept[number] = units
    return kept, fixed


def _allowed(structure: Structure, numbers: list[int], units: int) -> int:
    """The nearest number of units that all groups of a component can have."""
    rules = {structure.rules[n] for n in numbers}
    if len(rules) == 1:
        return next(iter(rules)).nearest(units)
    step = int(np.lcm.reduce([rule.step for rule in rules]))
    whole = min(rule.units for rule in rules)
    least = -(-max(rule.least for rule in rules) // step) * step
    return type(next(iter(rules)))(whole, step, min(whole, least)).nearest(units)


def linear_pairs(structure: Structure, resolved: list[int], dead: NDArray[np.bool_]) -> list[int]:
    """Of every step that is a weight layer, those that reach it without an activation between.

    Args:
        structure: The teacher.
        resolved: As of a phenotype.
        dead: As of a phenotype.

    Returns:
        Sets of bits, a bit for each step; 0 for all other steps.
    """
    pairs, carried = [0] * len(dead), [0] * len(dead)
    gone = dead.tolist()
    for step in structure.steps:
        index = step.index
        if gone[index]:
            carried[index] = carried[resolved[index]] if resolved[index] != index else 0
            continue
        bits = 0
        for source in step.inputs:
            bits |= carried[resolved[source]]
        if step.kind in WEIGHTED:
            pairs[index], bits = bits, 1 << index
        elif step.kind in ("act", "attention", "other"):
            bits = 0
        carried[index] = bits
    return pairs
