"""Random students and small changes of known ones.

Random students follow Cao, Wang, Kitani (ICLR 2019), sections 3.2 and 6.5: how many parts go and
how many skips come is drawn once for each student, so that students of all sizes are among them.
"""

from __future__ import annotations

import math
import random

from passes.architecture.genotype import Genotype
from passes.architecture.structure import Structure

_REMOVAL = (0.3, 0.4, 0.5, 0.6, 0.7)
_SKIPS = (0.003, 0.005, 0.01, 0.03, 0.05)

_MOST_EDITS = 5
_FLIP, _SCALE = 0.45, 0.40  # the rest adds or deletes a skip
_SPREAD = 0.35


def random_genotype(structure: Structure, rng: random.Random) -> Genotype:
    """A random genotype, to be repaired.

    Every part goes with one probability p1, every possible skip is added with one probability p3,
    both drawn once from a short list; every group, or class of tied ones, keeps a share that is
    uniform between 0 and 1, but one unit at least.

    Args:
        structure: The teacher.
        rng: The only source of randomness.
    """
    p1 = rng.choice(_REMOVAL)
    removed = [name for name in structure.parts if rng.random() < p1]
    widths: dict[str, int] = {}
    for numbers in structure.classes:
        share = 1 - rng.random()
        for number in numbers:
            group = structure.groups[number]
            widths[group.name] = max(1, int(share * group.units))
    p3 = rng.choice(_SKIPS)
    skips = [structure.names_of(pair) for pair in structure.skips if rng.random() < p3]
    return Genotype.of(removed, widths, skips)


def mutated(structure: Structure, genotype: Genotype, rng: random.Random) -> Genotype:
    """One to five edits of a genotype, to be repaired.

    An edit removes a part or puts it back (45 %), scales the width of a group, or of a class of
    tied ones, by exp(N(0, 0.35)) (40 %), or adds or deletes a skip (15 %).

    Args:
        structure: The teacher.
        genotype: Where to start.
        rng: The only source of randomness.
    """
    removed, widths, skips = set(genotype.removed), dict(genotype.widths), set(genotype.skips)
    parts, pairs = list(structure.parts), list(structure.skips)
    for _ in range(rng.randint(1, _MOST_EDITS)):
        draw = rng.random()
        if draw < _FLIP and parts:
            removed ^= {rng.choice(parts)}
        elif draw < _FLIP + _SCALE and structure.classes:
            _scale(structure, widths, rng)
        elif pairs and (not skips or rng.random() < 0.5):
            skips.add(structure.names_of(rng.choice(pairs)))
        elif skips:
            skips.remove(rng.choice(sorted(skips)))
    return Genotype.of(removed, widths, skips)


def _scale(structure: Structure, widths: dict[str, int], rng: random.Random) -> None:
    numbers = rng.choice(structure.classes)
    factor = math.exp(rng.gauss(0, _SPREAD))
    for number in numbers:
        group = structure.groups[number]
        units = round(widths.get(group.name, group.units) * factor)
        widths[group.name] = min(group.units, max(1, units))
