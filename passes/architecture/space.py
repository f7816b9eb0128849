"""The search space: every student that can be reached from a teacher, as genotypes.

Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR
2019, section 3.2: layer removal, layer shrinkage, added skip connections. The space is that of any
traced graph; its parts, couplings and costs are found there. Costs that a student's shapes tell are
never modelled: limits on them are filters, and repair narrows a student until they hold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from torch.nn.utils import parametrize

from energy_model.errors import ArgumentError, PreconditionError
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.architecture.build import build_student
from passes.architecture.costs import StudentCosts, checked_keys
from passes.architecture.fitting import fitted
from passes.architecture.genotype import Genotype
from passes.architecture.out_of_place import out_of_place
from passes.architecture.phenotype import Phenotype, canonical, linear_pairs, phenotype_of
from passes.architecture.policy import Policy
from passes.architecture.sampling import mutated, random_genotype
from passes.architecture.sketch import Sketch
from passes.architecture.sketching import Sketcher
from passes.architecture.structure import Structure
from passes.graph import Decision, ModelGraph

_COSTS = ("params", "macs", "energy")


class SearchSpace:
    """The students of one teacher.

    Args:
        graph: The traced teacher. It is not changed, and must not change while the space is used.
        hardware: The accelerator of the energy model; channel counts are multiples of its
            `channel_multiple`, or the teacher's.
        policy: What may be changed, and how.
        limits: What every student that `sample`, `mutate` and `repair` return keeps to.
        keys: Costs that `cost` counts, besides those of the limits; of `costs.KEYS`.
        file_bytes: Of the teacher's ONNX file, where the size of files counts.

    Attributes:
        structure: The teacher as the search sees it: parts, skips, channel groups, and in
            `structure.decisions` what cannot be changed and why.

    Raises:
        PreconditionError: The model cannot be traced as a whole, or is not a plain float model.
        UnsupportedBudget: A limit or key cannot be counted before a student is built.
        InfeasibleBudget: No student keeps to the limits.
    """

    def __init__(
        self,
        graph: ModelGraph,
        hardware: Hardware,
        policy: Policy | None = None,
        limits: Sequence[ResolvedLimit] = (),
        keys: Sequence[str] = _COSTS,
        file_bytes: int | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.limits = tuple(limits)
        self.keys = checked_keys([*keys, *(limit.key for limit in limits)])
        _check_plain(graph)
        graph = out_of_place(graph)
        self.structure = Structure(graph, self.policy, hardware.channel_multiple)
        self._costs = StudentCosts(
            graph, self.structure.groups, self.structure.steps, hardware, self.keys, file_bytes
        )
        self._sketcher = Sketcher(self.structure, self._costs)
        alive = np.zeros(len(self.structure.steps), dtype=bool)
        pairs = linear_pairs(self.structure, self.structure.same, alive)
        self._linear = _through_layers(pairs)
        self._last: tuple[Genotype, Phenotype] | None = None
        if self.limits:
            self.repair(Genotype())

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What cannot be searched, and why."""
        return self.structure.decisions

    def sample(self, rng: random.Random) -> Genotype:
        """A random student: the distributions of the paper's section 3.2; see `sampling`.

        Args:
            rng: The only source of randomness.
        """
        return self.repair(random_genotype(self.structure, rng))

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """A neighbour: one to five edits, repaired; see `sampling`.

        Args:
            genotype: Of this space.
            rng: The only source of randomness.

        Returns:
            Another genotype, unless all edits that were tried came to nothing.

        Raises:
            ArgumentError: The genotype is not one of this space.
        """
        start = self.repair(genotype)
        for _ in range(_ATTEMPTS):
            found = self.repair(mutated(self.structure, start, rng))
            if found != start:
                return found
        return start

    def repair(self, genotype: Genotype) -> Genotype:
        """The legal genotype nearest by, in the one form that all of its kind share.

        What contradicts itself is resolved: parts in removed parts, skips that lead nowhere,
        widths that coupled groups cannot have. Where two weight layers would lose the last
        activation between them, parts stay. Then widths shrink until the limits hold, and if that
        is not enough, parts go.

        Raises:
            ArgumentError: A name is not one of this teacher's.
            InfeasibleBudget: No student keeps to the limits.
        """
        found = self._canonical(genotype)
        if self.within(found):
            return found
        return fitted(self.structure, found, self.limits, self.cost, self._canonical)

    def _canonical(self, genotype: Genotype) -> Genotype:
        found = self._phenotype(genotype)
        if self._loses_nonlinearity(found):
            kept: list[str] = []
            for part in found.parts:
                tried = Genotype.of([*kept, part.name])
                if not self._loses_nonlinearity(phenotype_of(self.structure, tried)):
                    kept.append(part.name)
            legal = Genotype.of(kept, dict(genotype.widths), genotype.skips)
            found = self._phenotype(legal)
        once = canonical(self.structure, found)
        # What was dropped may have tied groups: without it, all is as wide as it says.
        return once if not found.dropped else canonical(self.structure, self._phenotype(once))

    def violations(self, genotype: Genotype) -> list[str]:
        """Why a genotype is not legal, in words; empty if it is.

        Names of another model are an error in `repair`, `cost`, `sketch` and `build`.
        """
        try:
            found = self._phenotype(genotype)
        except ArgumentError as error:
            return [error.what]
        reasons = [f"skip {a!r} to {b!r}: {why}" for (a, b), why in found.dropped]
        for name, units in genotype.widths:
            number = self.structure.number[name]
            kept = int(found.kept[number])
            if units != kept:
                reasons.append(f"group {name!r} has {kept} units, not {units}")
        if self._loses_nonlinearity(found):
            reasons.append("two weight layers lose the last activation between them")
        costs = self.cost(genotype)
        over = [limit for limit in self.limits if costs[limit.key] > limit.maximum]
        for limit in over:
            asked, found_cost = limit.amount(limit.maximum), limit.amount(costs[limit.key])
            reasons += [f"{limit.key} is {found_cost}, above {asked}"]
        return reasons

    def within(self, genotype: Genotype) -> bool:
        """Whether a student keeps to the limits."""
        if not self.limits:
            return True
        costs = self.cost(genotype)
        return all(costs[limit.key] <= limit.maximum for limit in self.limits)

    def cost(self, genotype: Genotype) -> dict[str, int | float]:
        """What a student costs, exactly, without building it; by key.

        All weights count as nonzero. Parameters are those that the graph uses.

        Raises:
            ArgumentError: A name is not one of this teacher's.
        """
        found = self._phenotype(genotype)
        gated = len(found.skips) if self.policy.skips == "gated" else 0
        return self._costs.values(found.kept, found.dead, gated)

    def sketch(self, genotype: Genotype) -> Sketch:
        """The sketch of a student without building it: that of `build`, as `sketch_of` reads it.

        Raises:
            ArgumentError: A name is not one of this teacher's.
        """
        return self._sketcher.sketch(self._phenotype(genotype))

    def build(self, genotype: Genotype) -> ModelGraph:
        """The student, with the teacher's weights in what is left; its graph module is the model.

        Raises:
            ArgumentError: The genotype is not legal here; its limits are not looked at.
            PostconditionError: The student cannot be built; the message has the digest.
        """
        found = self._phenotype(genotype)
        if found.dropped or self._loses_nonlinearity(found):
            raise ArgumentError(
                "; ".join(self.violations(genotype)),
                where=f"genotype {genotype.digest}",
                remedy="SearchSpace.repair makes it legal.",
            )
        return build_student(self.structure, genotype, found)

    def _phenotype(self, genotype: Genotype) -> Phenotype:
        if self._last is None or self._last[0] != genotype:
            self._last = genotype, phenotype_of(self.structure, genotype)
        return self._last[1]

    def _loses_nonlinearity(self, found: Phenotype) -> bool:
        if not self.policy.keep_nonlinearity or not found.parts:
            return False
        pairs = linear_pairs(self.structure, found.resolved, found.dead)
        return any(now & ~before for now, before in zip(pairs, self._linear, strict=True))


# How often a mutation is tried that comes to nothing.
_ATTEMPTS = 20


def _check_plain(graph: ModelGraph) -> None:
    """A student is cut from plain weights: what is quantized or parametrized comes afterwards."""
    for path, part in graph.module.named_modules():
        if parametrize.is_parametrized(part):
            raise PreconditionError(
                "its weights are parametrized", where=path, remedy="Search before other methods."
            )
    for name in (*graph.encodings, *graph.codebooks):
        raise PreconditionError(
            "its weights are quantized", where=name, remedy="Search first, then quantize."
        )


def _through_layers(pairs: Sequence[int]) -> list[int]:
    """Weight layers that reach each one without an activation, also through others."""
    found = list(pairs)
    for index, bits in enumerate(pairs):
        rest = bits
        while rest:
            lowest = rest & -rest
            found[index] |= found[lowest.bit_length() - 1]
            rest ^= lowest
    return found
